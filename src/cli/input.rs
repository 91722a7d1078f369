//! Standard input: lists that are piped in, and the answer of a person.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::IsTerminal as _;
use std::io::Read as _;

/// More than the ids of any one request, and too little to fill the memory by mistake.
const MAX_BYTES: u64 = 64 << 20;

/// Where a command's input comes from.
pub struct Input {
    /// Whether a person can be asked.
    pub is_terminal: bool,
    source: Option<Box<dyn BufRead + Send>>,
}

impl Input {
    /// The process's own standard input.
    pub fn standard() -> Self {
        let stdin = io::stdin();
        Self { is_terminal: stdin.is_terminal(), source: Some(Box::new(BufReader::new(stdin))) }
    }

    /// An input with a content that a test made up.
    #[cfg(test)]
    pub(crate) fn kept(is_terminal: bool, content: &str) -> Self {
        let content = io::Cursor::new(content.as_bytes().to_vec());
        Self { is_terminal, source: Some(Box::new(content)) }
    }

    /// All of it, as text.
    pub async fn text(&mut self) -> io::Result<String> {
        self.read(|source| {
            let mut text = String::new();
            source.take(MAX_BYTES).read_to_string(&mut text)?;
            Ok(text)
        })
        .await
    }

    /// Whether the next line is a yes. An input that has ended says no.
    pub async fn says_yes(&mut self) -> io::Result<bool> {
        let line = self
            .read(|source| {
                let mut line = String::new();
                source.take(MAX_BYTES).read_line(&mut line)?;
                Ok(line)
            })
            .await?;
        Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    /// Reads in a thread of its own, so that Ctrl-C is heard meanwhile.
    async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&mut Box<dyn BufRead + Send>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut source = self
            .source
            .take()
            .ok_or_else(|| io::Error::other("a reading of it was interrupted"))?;
        let (source, result) = tokio::task::spawn_blocking(move || {
            let result = read(&mut source);
            (source, result)
        })
        .await
        .map_err(io::Error::other)?;
        self.source = Some(source);
        result
    }
}
