//! `longshore keys`: keys of clients, straight in the database. A running server knows a new key at
//! once, and forgets a revoked one within seconds.

use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use secrecy::ExposeSecret as _;

use super::Failed;
use super::Start;
use super::serve;
use crate::clock::Clock;
use crate::ids::ApiKeyId;
use crate::keys;
use crate::keys::Identity;

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key and show it, once
    Create {
        /// Whose files the key makes and sees
        #[arg(long)]
        owner: String,
        /// The key sees everything, and may act for any owner
        #[arg(long)]
        admin: bool,
    },
    /// List the keys, without the keys themselves
    List,
    /// Revoke a key for good
    Revoke {
        /// Its id, as `list` shows it
        id: String,
    },
}

impl KeysCommand {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        start.start_logging("warn")?;
        let db = serve::connect(&start.load()?.config).await?;
        db.migrate().await?;
        let now = Clock::default().now();
        match self {
            Self::Create { owner, admin } => {
                let owner = keys::check_owner(&owner)
                    .map_err(|error| Failed::Misconfigured(error.to_string()))?;
                let identity = Identity { owner, is_admin: admin };
                let (stored, key) = db
                    .intake(move |tx| {
                        let identity = identity.clone();
                        Box::pin(async move { keys::create(tx, now, &identity).await })
                    })
                    .await?;
                eprintln!("key {} for `{}`; it is shown this once:", stored.id, stored.owner);
                println!("{}", key.expose_secret());
            }
            Self::List => {
                let mut table = Table::new();
                table
                    .load_style(UTF8_FULL_CONDENSED)
                    .set_header(["owner", "admin", "key", "created", "revoked", "id"]);
                for stored in keys::list(db.read()).await? {
                    let time = |at: crate::clock::Timestamp| {
                        jiff::Timestamp::from_second(at.unix_seconds())
                            .map(|at| at.to_string())
                            .unwrap_or_default()
                    };
                    table.add_row([
                        stored.owner.clone(),
                        (if stored.is_admin { "yes" } else { "" }).to_owned(),
                        format!("{}…", stored.hint),
                        time(stored.created_at),
                        stored.revoked_at.map(time).unwrap_or_default(),
                        stored.id.to_string(),
                    ]);
                }
                println!("{table}");
            }
            Self::Revoke { id } => {
                let key: ApiKeyId = id.parse().map_err(|_| {
                    Failed::Misconfigured(format!(
                        "`{id}` is not a key's id; `longshore keys list` shows them"
                    ))
                })?;
                let revoked = db
                    .intake(move |tx| Box::pin(async move { keys::revoke(tx, now, key).await }))
                    .await?;
                if !revoked {
                    return Err(Failed::Otherwise(anyhow::anyhow!(
                        "there is no key `{id}` that could be revoked"
                    )));
                }
                eprintln!("revoked; a running server refuses the key within 5 s");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
