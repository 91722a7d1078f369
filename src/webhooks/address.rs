//! Where webhooks may go: not into the network that the server stands in, unless its operator says so.
//!
//! A URL is checked when it is registered; and because names change what they mean, the address that is really
//! connected to is checked each time (see [`Resolver`]).

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;

/// The longest URL that is taken, in bytes.
pub const MAX_URL: usize = 2048;
/// How long a name may take to resolve when its URL is registered.
const RESOLVE: Duration = Duration::from_secs(5);

/// Which URLs and addresses are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// https, to addresses that everybody can reach.
    Public,
    /// http too, and any address: `webhooks.allow_private_addresses`.
    Anywhere,
}

/// Why a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("`url` must be an absolute https URL, such as `https://example.com/hooks`")]
    NotAUrl,
    #[error("`url` is longer than {MAX_URL} bytes")]
    TooLong,
    #[error(
        "`url` must be https; plain http is only for installations with `webhooks.allow_private_addresses`"
    )]
    NotHttps,
    #[error("`url` must be without user and password; receivers check the signature instead")]
    HasUser,
    #[error("`url` must be without a fragment (`#…`), which is never sent")]
    HasFragment,
    #[error(
        "`url` leads to an address that is not public; `webhooks.allow_private_addresses` allows those"
    )]
    NotPublic,
    #[error(
        "the host of `url` cannot be resolved; check its spelling, or try again once its name is known"
    )]
    Unresolved,
}

/// Reads a URL and checks all that can be told without asking anybody.
///
/// # Errors
///
/// Says why it is refused.
pub fn parse(text: &str, reach: Reach) -> Result<Url, Refused> {
    if text.len() > MAX_URL {
        return Err(Refused::TooLong);
    }
    // The parser drops what is invisible, and what is checked must be what was said.
    if text.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err(Refused::NotAUrl);
    }
    let url = Url::parse(text).map_err(|_| Refused::NotAUrl)?;
    match (url.scheme(), reach) {
        ("https", _) | ("http", Reach::Anywhere) => {}
        ("http", Reach::Public) => return Err(Refused::NotHttps),
        _ => return Err(Refused::NotAUrl),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::HasUser);
    }
    if url.fragment().is_some() {
        return Err(Refused::HasFragment);
    }
    check_literal(&url, reach)?;
    Ok(url)
}

/// Whether the host of a URL, if it is an address and no name, is allowed: these are never resolved.
///
/// # Errors
///
/// When it is not.
pub fn check_literal(url: &Url, reach: Reach) -> Result<(), Refused> {
    let host = url.host_str().ok_or(Refused::NotAUrl)?.trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) if reach == Reach::Public && !is_public(address) => Err(Refused::NotPublic),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Resolves the host of a URL that is to be registered. None of its addresses may be private: one that is now and
/// then would pass now and then.
///
/// # Errors
///
/// Says why it is refused.
pub async fn check_resolved(url: &Url, reach: Reach) -> Result<(), Refused> {
    if reach == Reach::Anywhere {
        return Ok(());
    }
    let host = url.host_str().ok_or(Refused::NotAUrl)?.trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let resolved = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
    let mut addresses =
        resolved.map_err(|_| Refused::Unresolved)?.map_err(|_| Refused::Unresolved)?.peekable();
    if addresses.peek().is_none() {
        return Err(Refused::Unresolved);
    }
    if addresses.all(|address| is_public(address.ip())) { Ok(()) } else { Err(Refused::NotPublic) }
}

/// Resolves names for deliveries, to allowed addresses alone: what a name means may have changed since it was checked.
#[derive(Clone, Copy, Debug)]
pub struct Resolver(pub Reach);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| reach == Reach::Anywhere || is_public(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(Refused::NotPublic.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether everybody can reach this address, and it is one machine's own.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    /// What IANA lists as not globally reachable, multicast, and the relays of 6to4.
    const OTHERS: [([u8; 4], u32); 15] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        ([192, 88, 99, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    let bits = address.to_bits();
    !OTHERS.iter().any(|(network, length)| {
        bits >> (32 - length) == u32::from_be_bytes(*network) >> (32 - length)
    })
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    /// What is not for everybody within 2000::/3, the only space that is given out. What translates to IPv4 (2002::/16,
    /// 2001::/32) would lead to any address there; 64:ff9b::/96 and ::ffff:0:0/96 lie outside of it.
    const OTHERS: [([u16; 8], u32); 4] = [
        ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
        ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    ];
    let bits = address.to_bits();
    let is_in = |network: [u16; 8], length: u32| {
        bits >> (128 - length) == Ipv6Addr::from(network).to_bits() >> (128 - length)
    };
    is_in([0x2000, 0, 0, 0, 0, 0, 0, 0], 3)
        && !OTHERS.iter().any(|(network, length)| is_in(*network, *length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_only_some_can_reach_is_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "126.0.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2003::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_url_that_is_not_for_webhooks_is_refused() {
        use Refused::*;
        for (url, why) in [
            ("", NotAUrl),
            ("example.com/hook", NotAUrl),
            ("/hook", NotAUrl),
            ("ftp://example.com", NotAUrl),
            ("file:///etc/passwd", NotAUrl),
            ("https://", NotAUrl),
            ("https://exa mple.com", NotAUrl),
            ("https://example.com/a\nb", NotAUrl),
            ("http://example.com", NotHttps),
            ("https://user@example.com", HasUser),
            ("https://user:pass@example.com", HasUser),
            ("https://:pass@example.com", HasUser),
            ("https://example.com/#part", HasFragment),
            ("https://example.com/#", HasFragment),
            ("https://127.0.0.1/", NotPublic),
            ("https://127.1/", NotPublic),
            ("https://2130706433/", NotPublic),
            ("https://0x7f.0.0.1/", NotPublic),
            ("https://0x7f000001/", NotPublic),
            ("https://017700000001/", NotPublic),
            ("https://0/", NotPublic),
            ("https://127.0.0.1./", NotPublic),
            ("https://１２７.0.0.1/", NotPublic),
            ("https://169.254.169.254/latest/meta-data", NotPublic),
            ("https://[::1]/", NotPublic),
            ("https://[::ffff:127.0.0.1]/", NotPublic),
            ("https://[::ffff:7f00:1]/", NotPublic),
            ("https://[64:ff9b::7f00:1]/", NotPublic),
            ("https://[fe80::1%25eth0]/", NotAUrl),
            ("https://[fe80::1%eth0]/", NotAUrl),
            ("https://256.0.0.1/", NotAUrl),
        ] {
            assert_eq!(parse(url, Reach::Public).unwrap_err(), why, "{url}");
        }
        assert_eq!(
            parse(&format!("https://example.com/{}", "x".repeat(MAX_URL)), Reach::Public),
            Err(TooLong)
        );
        for url in [
            "https://example.com",
            "https://example.com:8443/a?b=c",
            "https://8.8.8.8/",
            "https://[2606:4700::1111]/",
        ] {
            assert!(parse(url, Reach::Public).is_ok(), "{url}");
        }
        for url in ["http://127.0.0.1:1/", "http://[::1]/", "http://localhost/", "https://10.0.0.1"]
        {
            assert!(parse(url, Reach::Anywhere).is_ok(), "{url}");
        }
        assert_eq!(parse("ftp://127.0.0.1", Reach::Anywhere), Err(NotAUrl));
    }

    #[tokio::test]
    async fn a_name_that_means_this_machine_is_refused_at_registration_and_at_delivery() {
        for url in ["https://localhost/", "https://LOCALHOST:8443/"] {
            let url = parse(url, Reach::Public).unwrap();
            assert_eq!(check_resolved(&url, Reach::Public).await, Err(Refused::NotPublic), "{url}");
        }
        let name = || "localhost".parse().unwrap();
        assert!(Resolver(Reach::Public).resolve(name()).await.is_err());
        assert!(Resolver(Reach::Anywhere).resolve(name()).await.is_ok());
        let nowhere = parse("https://nowhere.invalid/", Reach::Public).unwrap();
        assert_eq!(check_resolved(&nowhere, Reach::Public).await, Err(Refused::Unresolved));
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_private_address_gets_through(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let spellings = [
                format!("https://{address}/"),
                format!("https://{bits}/"),
                format!("https://0x{bits:x}/"),
                format!("https://0{bits:o}/"),
            ];
            for url in spellings {
                prop_assert_eq!(parse(&url, Reach::Public).is_ok(), is_public(address.into()), "{}", url);
            }
            for translated in [address.to_ipv6_mapped(), address.to_ipv6_compatible()] {
                let url = format!("https://[{translated}]/");
                prop_assert!(parse(&url, Reach::Public).is_err());
            }
        }
    }
}
