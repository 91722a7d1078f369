//! Cuts an input into chunks, at borders that the input itself chooses.

/// Where chunks end, from the first bytes of an input, and the rest of it.
pub struct Cut {
    state: u32,
}

impl Cut {
    pub fn split(input: &[u8]) -> Option<(Self, &[u8])> {
        let (seed, content) = input.split_first_chunk::<4>()?;
        // The generator stands still at zero.
        Some((Self { state: u32::from_le_bytes(*seed) | 1 }, content))
    }

    /// The content in chunks; many are of a byte or two, and some are empty.
    pub fn apply<'c>(&mut self, content: &'c [u8]) -> Vec<&'c [u8]> {
        let (mut chunks, mut rest) = (Vec::new(), content);
        while !rest.is_empty() {
            let length = match self.next() % 8 {
                0 => 0,
                1..=3 => 1,
                4..=5 => 2 + self.next() as usize % 6,
                _ => 1 + self.next() as usize % 200,
            };
            let (chunk, behind) = rest.split_at(length.min(rest.len()));
            chunks.push(chunk);
            rest = behind;
        }
        chunks
    }

    /// Xorshift.
    fn next(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state
    }
}
