//! An installation whose workers can be killed, frozen and stopped: with SQLite they are the server
//! itself, with PostgreSQL a process of their own.

use super::Env;
use super::Kind;
use super::Options;
use super::Process;

pub struct Crew {
    pub env: Env,
    worker: Option<Process>,
}

impl Crew {
    pub async fn on(kind: Kind) -> Self {
        Self::with(Options::on(kind)).await
    }

    pub async fn with(options: Options) -> Self {
        let command = match options.kind {
            Kind::Sqlite => "up",
            Kind::Postgres => "serve",
        };
        let env = Env::with(Options { command, ..options }).await;
        let worker = (command == "serve").then(|| env.also("work"));
        Self { env, worker }
    }

    /// The process that runs the jobs.
    pub fn worker(&mut self) -> &mut Process {
        self.worker.as_mut().unwrap_or(&mut self.env.server)
    }

    pub fn kill(&mut self) {
        self.worker().kill();
    }

    /// Starts the workers again, after they were killed or have ended.
    pub fn restart(&mut self) {
        match self.worker {
            Some(_) => self.worker = Some(self.env.also("work")),
            None => self.env.restart(),
        }
    }
}
