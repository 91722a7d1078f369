//! The server of this machine: whether it runs, and what it says of itself.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::Check;
use super::Finding;
use super::Name;
use super::timed;
use crate::config::Config;

#[derive(Deserialize)]
struct Readiness {
    status: String,
    database: String,
    blobs: String,
    redis: String,
}

pub async fn check(config: &Config, limit: Duration) -> Check {
    timed(limit, Name::Server, None, ask(reachable(config.server.listen))).await
}

async fn ask(address: SocketAddr) -> Finding {
    if address.port() == 0 {
        return Finding::skipped("`server.listen` leaves the port open");
    }
    let url = format!("http://{address}/readyz");
    let asked = async {
        // It is this machine: a proxy would look on its own.
        let http = reqwest::Client::builder().no_proxy().build()?;
        http.get(&url).send().await?.bytes().await
    };
    let body = match asked.await {
        Ok(body) => body,
        Err(error) if error.is_connect() => {
            return Finding::warning(
                format!("nothing listens on `{address}` on this machine"),
                "`longshore up` or `longshore serve` starts it; where only `longshore work` runs, all is as it should be",
            );
        }
        Err(error) => {
            return Finding::failed(
                format!("no answer on `{address}`: {}", error.without_url()),
                "see its log; `server.listen` may be the address of something else",
            );
        }
    };
    match serde_json::from_slice::<Readiness>(&body) {
        Ok(ready) if ready.status == "ok" => Finding::ok(format!("`{address}` is ready")),
        Ok(ready) => {
            let Readiness { status, database, blobs, redis } = ready;
            let message = format!(
                "`{address}` is `{status}`: database {database}, blob store {blobs}, Redis {redis}"
            );
            let remedy = "see what is said of these here, and the server's log";
            if status == "degraded" {
                Finding::warning(message, remedy)
            } else {
                Finding::failed(message, remedy)
            }
        }
        Err(_) => Finding::failed(
            format!("something else than longshore answers on `{address}`"),
            "end it, or choose another address for `server.listen`",
        ),
    }
}

/// Where a server on this machine that listens on `listen` is reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_for_everybody_is_asked_on_this_machine() {
        let reached = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:4700"), "127.0.0.1:4700");
        assert_eq!(reached("[::]:4700"), "[::1]:4700");
        assert_eq!(reached("10.0.0.1:80"), "10.0.0.1:80");
    }
}
