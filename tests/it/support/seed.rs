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
        let db = Db::connect(&self.database.url).await.unwrap();
        let now = Clock::default().now();
        let mut ids = Vec::with_capacity(count);
        for chunk in (0..count).collect::<Vec<_>>().chunks(CHUNK) {
            let new: Vec<_> = chunk
                .iter()
                .map(|number| {
                    let copy = self.sandbox.plant(
                        "a",
                        &format!("{number}.txt"),
                        Purpose::UserData,
                        Bytes::from_static(b"x"),
                    );
                    (new_file(owner, *number), copy.id)
                })
                .collect();
            ids.extend(new.iter().map(|(file, _)| file.managed_id.clone()));
            let new = std::sync::Arc::new(new);
            let written: Result<(), sea_orm::DbErr> = db
                .work(move |tx| {
                    let new = std::sync::Arc::clone(&new);
                    Box::pin(async move {
                        for (file, copy) in new.iter() {
                            longshore::files::store::insert(tx, now, file).await?;
                            let mapping = new_mapping(file.id);
                            longshore::mappings::store::insert(tx, now, std::slice::from_ref(&mapping))
                                .await?;
                            let sql = "UPDATE mappings SET status = 'ready', ready_at = 1, provider_file_id = $2 \
                                       WHERE id = $1";
                            let values = [mapping.id.0.into(), copy.clone().into()];
                            tx.execute_raw(longshore::db::statement(tx, sql, values)).await?;
                        }
                        tx.execute_unprepared("UPDATE files SET status = 'processed' WHERE status = 'uploaded'")
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

fn new_mapping(file_id: FileId) -> NewMapping {
    NewMapping {
        id: MappingId::mint(),
        file_id,
        position: 0,
        deployment_id: "dep_seeded".to_owned(),
        model: "a".to_owned(),
        provider: "at-a".to_owned(),
        provider_model: "a-2026".to_owned(),
        marker: Marker::mint("abcdef").0,
        job_id: JobId::mint(),
    }
}
