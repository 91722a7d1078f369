//! `longshore completions`: scripts with which a shell completes our commands and options.

use std::io;
use std::io::Write as _;

use clap::Args;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

/// Installs it, for bash: `longshore completions bash > ~/.local/share/bash-completion/completions/longshore`.
/// For zsh, write it to a file `_longshore` in a folder of `$fpath`; for fish, to
/// `~/.config/fish/completions/longshore.fish`; for the others, run it in the profile of the shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell to complete in
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> io::Result<()> {
        // In memory first: the generator panics where its reader has gone away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "longshore", &mut script);
        match io::stdout().write_all(&script) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}
