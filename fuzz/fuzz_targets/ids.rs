//! Ids as clients send them: any text is read or refused, and what is written reads back.

#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use longshore::ids::JobId;
use longshore::ids::managed::MAX_LENGTH;
use longshore::ids::managed::ManagedId;
use longshore::ids::managed::Origin;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        check(text);
        if let Ok(id) = text.parse::<JobId>() {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }
    // The line inside: few random texts are base64 of something.
    check(&BASE64_URL_SAFE_NO_PAD.encode(input));
});

fn check(text: &str) {
    let Some((_, id)) = ManagedId::decode(text) else { return };
    let written = id.encode();
    // Escapes can make it longer than any id we would ever have minted.
    if written.len() > MAX_LENGTH {
        return;
    }
    let mut expected = id;
    if let ManagedId::File { content_type, .. } = &mut expected
        && content_type.len() > 128
    {
        *content_type = "application/octet-stream".to_owned();
    }
    assert_eq!(ManagedId::decode(&written), Some((Origin::Longshore, expected)));
}
