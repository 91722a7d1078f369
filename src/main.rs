//! The command line.

use std::process::ExitCode;

use clap::Parser as _;
use longshore::cli::Cli;

fn main() -> ExitCode {
    // Two TLS providers are compiled in (sqlx brings ring, reqwest aws-lc-rs); without a default of
    // the process, a connection that names none would panic.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider was installed first");
        return ExitCode::FAILURE;
    }
    Cli::parse().run()
}
