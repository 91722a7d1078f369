//! The command line.

use std::process::ExitCode;

use clap::Parser as _;
use longshore::cli::Cli;

fn main() -> ExitCode {
    // One TLS provider is compiled in; where a library brings another, a connection that names none would panic.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider was installed first");
        return ExitCode::FAILURE;
    }
    Cli::parse().run()
}
