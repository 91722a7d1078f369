//! Files that are there already: rows and copies, without an upload for each.

use bytes::Bytes;
use longshore::clock::Clock;
use longshore::files::store::NewFile;
use longshore::ids::FileId;
use longshore::ids::JobId;
use longshore::ids::MappingId;
use longshore::ids::managed::ManagedId;
use longshore::mappings::Marker;
use longshore::mappings::store::NewMapping;
use longshore::sandbox::Purpose;
use sea_orm::ConnectionTrait as _;

use super::Env;
use longshore::db::Db;

const CHUNK: usize = 500;

impl Env {
    /// Writes `count` files of `owner`, each with a copy at the account `a`. Answers their managed ids.
    pub async fn seed(&self, owner: &str, count: usize) -> Vec<String> {
        self.seed_at(&["a"], owner, count).await
    }

    /// As `seed`, with a copy at each of these accounts.
    pub async fn seed_at(
        &self,
        accounts: &'static [&'static str],
        owner: &str,
        count: usize,
    ) -> Vec<String> {
        let db = Db::connect(&self.database.url).await.unwrap();
        let now = Clock::default().now();
        let mut ids = Vec::with_capacity(count);
        for chunk in (0..count).collect::<Vec<_>>().chunks(CHUNK) {
            let new: Vec<_> = chunk
                .iter()
                .map(|number| {
                    let plant = |account: &&str| {
                        let name = format!("{number}.txt");
                        let bytes = Bytes::from_static(b"x");
                        self.sandbox.plant(account, &name, Purpose::UserData, bytes).id
                    };
                    (new_file(owner, *number), accounts.iter().map(plant).collect::<Vec<_>>())
                })
                .collect();
            ids.extend(new.iter().map(|(file, _)| file.managed_id.clone()));
            let new = std::sync::Arc::new(new);
            let written: Result<(), sea_orm::DbErr> = db
                .work(move |tx| {
                    let new = std::sync::Arc::clone(&new);
                    Box::pin(async move {
                        for (file, copies) in new.iter() {
                            longshore::files::store::insert(tx, now, file).await?;
                            for (account, copy) in accounts.iter().zip(copies) {
                                let mapping = new_mapping(file.id, account);
                                let mapping = std::slice::from_ref(&mapping);
                                longshore::mappings::store::insert(tx, now, mapping).await?;
                                let sql = "UPDATE mappings SET status = 'ready', ready_at = 1, \
                                           provider_file_id = $2 WHERE id = $1";
                                let values = [mapping[0].id.0.into(), copy.clone().into()];
                                tx.execute_raw(longshore::db::statement(tx, sql, values)).await?;
                            }
                        }
                        tx.execute_unprepared(
                            "UPDATE files SET status = 'processed' WHERE status = 'uploaded'",
                        )
                        .await
                        .map(|_| ())
                    })
                })
                .await;
            written.unwrap();
        }
        ids
    }
}

fn new_file(owner: &str, number: usize) -> NewFile {
    let id = FileId::mint();
    let managed_id = ManagedId::File {
        content_type: "text/plain".to_owned(),
        uuid: id.0,
        target_model_names: vec!["a".to_owned()],
        output: None,
    };
    NewFile {
        id,
        managed_id: managed_id.encode(),
        owner: owner.to_owned(),
        filename: format!("{number}.txt"),
        content_type: "text/plain".to_owned(),
        purpose: "user_data".to_owned(),
        bytes: 1,
        sha256: "00".repeat(32),
        metadata: [("number".to_owned(), (number % 10).to_string())].into(),
        blob_key: format!("uploads/2026-01-01/00/{}", id.0.simple()),
        expires_at: None,
        lines: None,
    }
}

fn new_mapping(file_id: FileId, account: &str) -> NewMapping {
    NewMapping {
        id: MappingId::mint(),
        file_id,
        position: 0,
        deployment_id: format!("dep_{account}"),
        model: account.to_owned(),
        provider: format!("at-{account}"),
        provider_model: format!("{account}-2026"),
        marker: Marker::mint("abcdef").0,
        job_id: JobId::mint(),
    }
}
