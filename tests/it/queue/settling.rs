//! The status of a file follows from those of its mappings, also when several change at once.

use std::sync::Arc;
use std::time::Duration;

use longshore::db::Transaction;
use longshore::error::Error;
use longshore::files::create;
use longshore::files::store::FileView;
use longshore::ids::FileId;
use longshore::ids::JobId;
use longshore::ids::MappingId;
use longshore::jobs::Failure;
use longshore::mappings::outcome;
use longshore::mappings::store;
use longshore::mappings::store::Certainty;
use longshore::mappings::store::Copy;
use sea_orm::DbErr;
use tokio::sync::Semaphore;

use super::on_both;
use crate::support::Kind;
use crate::support::Queue;
use crate::support::eventually;

on_both!(
    a_file_is_processed_with_its_last_mapping,
    a_file_is_in_error_when_a_mapping_failed_and_none_works,
    a_late_copy_of_a_mapping_that_has_one_is_a_stray,
    a_copy_that_a_mapping_holds_is_never_condemned,
    no_copy_is_condemned_while_an_upload_is_under_way,
);

async fn mapping(queue: &Queue, view: &FileView, place: usize) -> MappingId {
    let (file_id, job_id) = (view.file.id, view.mappings[place].job_id);
    store::of_job(queue.db.read(), file_id, job_id).await.unwrap().unwrap()
}

async fn begin(tx: &Transaction, id: MappingId) -> Result<store::Upload, DbErr> {
    store::begin_uploads(tx, &[id]).await?;
    store::find_upload(tx, id).await?.ok_or_else(|| DbErr::RecordNotFound("mapping".to_owned()))
}

fn copy(name: &str) -> Copy {
    Copy { provider_file_id: name.to_owned(), expires_at: None }
}

async fn complete(queue: &Queue, id: MappingId, name: &'static str) {
    let now = queue.now().await;
    queue
        .write(move |tx| {
            Box::pin(async move {
                let upload = begin(tx, id).await?;
                outcome::complete(tx, now, &upload, &copy(name)).await
            })
        })
        .await;
}

async fn abandon(queue: &Queue, id: MappingId) {
    let now = queue.now().await;
    queue
        .write(move |tx| {
            Box::pin(async move {
                let upload = begin(tx, id).await?;
                let failure = Failure::permanent("no", "no");
                outcome::abandon(tx, now, &upload, Certainty::Absent, &failure).await
            })
        })
        .await;
}

async fn events(queue: &Queue) -> Vec<String> {
    queue.text("SELECT type FROM events ORDER BY seq").await
}

async fn a_file_is_processed_with_its_last_mapping(queue: Queue) {
    let view = queue.file(&["a", "b"]).await;
    complete(&queue, mapping(&queue, &view, 0).await, "file-a").await;
    assert_eq!(queue.file_status(view.file.id).await, "uploaded");
    complete(&queue, mapping(&queue, &view, 1).await, "file-b").await;
    assert_eq!(queue.file_status(view.file.id).await, "processed");
    assert_eq!(events(&queue).await, ["file.created", "file.processed"]);
}

async fn a_file_is_in_error_when_a_mapping_failed_and_none_works(queue: Queue) {
    let view = queue.file(&["a", "b"]).await;
    abandon(&queue, mapping(&queue, &view, 0).await).await;
    assert_eq!(queue.file_status(view.file.id).await, "uploaded");
    complete(&queue, mapping(&queue, &view, 1).await, "file-b").await;
    assert_eq!(queue.file_status(view.file.id).await, "error");
    assert_eq!(events(&queue).await, ["file.created", "file.failed"]);
}

async fn a_late_copy_of_a_mapping_that_has_one_is_a_stray(queue: Queue) {
    let view = queue.file(&["a"]).await;
    let id = mapping(&queue, &view, 0).await;
    complete(&queue, id, "file-1").await;
    complete(&queue, id, "file-1").await;
    assert_eq!(queue.count("SELECT count(*) FROM strays").await, 0);
    complete(&queue, id, "file-2").await;
    assert_eq!(queue.text("SELECT provider_file_id FROM strays").await, ["file-2"]);
    assert_eq!(queue.text("SELECT provider_file_id FROM mappings").await, ["file-1"]);
    let looks = "SELECT count(*) FROM jobs WHERE kind = 'verify_upload'";
    assert!(queue.count(looks).await > 0);
}

async fn condemn(
    queue: &Queue,
    id: MappingId,
    found: &'static [&'static str],
) -> Option<Vec<String>> {
    let now = queue.now().await;
    let condemned = queue.write(move |tx| {
        Box::pin(async move {
            let upload = store::find_upload(tx, id).await?.unwrap();
            let found: Vec<_> = found.iter().map(|name| (*name).to_owned()).collect();
            store::condemn(tx, now, &upload, &found).await
        })
    });
    let strays = condemned.await?;
    Some(strays.into_iter().map(|stray| stray.provider_file_id).collect())
}

async fn a_copy_that_a_mapping_holds_is_never_condemned(queue: Queue) {
    let view = queue.file(&["a"]).await;
    let id = mapping(&queue, &view, 0).await;
    complete(&queue, id, "file-1").await;
    let condemned = condemn(&queue, id, &["file-1", "file-2"]).await;
    assert_eq!(condemned, Some(vec!["file-2".to_owned()]));
    assert_eq!(store::condemned(queue.db.read(), id).await.unwrap(), ["file-2"]);
}

async fn no_copy_is_condemned_while_an_upload_is_under_way(queue: Queue) {
    let view = queue.file(&["a"]).await;
    let id = mapping(&queue, &view, 0).await;
    assert_eq!(condemn(&queue, id, &["file-1"]).await, None);
    assert_eq!(queue.count("SELECT count(*) FROM strays").await, 0);
}

/// A transaction that has done its part and waits to be let go, in a task of its own.
struct Open {
    go: Arc<Semaphore>,
    task: tokio::task::JoinHandle<()>,
}

impl Open {
    async fn commit(self) {
        self.go.add_permits(1);
        self.task.await.unwrap();
    }
}

/// Retries the file, but does not commit yet.
async fn open_retry(queue: &Queue, view: FileView) -> Open {
    let (done, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (told, wait) = (Arc::clone(&done), Arc::clone(&go));
    let queue = queue.elsewhere().await;
    let task = tokio::spawn(async move {
        let retried = queue.db.intake(move |tx| {
            let (view, told, wait) = (view.clone(), Arc::clone(&told), Arc::clone(&wait));
            Box::pin(async move {
                create::retry(tx, &view).await?;
                told.add_permits(1);
                drop(wait.acquire().await);
                Ok::<_, Error>(())
            })
        });
        retried.await.unwrap();
    });
    drop(done.acquire().await);
    Open { go, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mappings_that_end_at_once_make_the_file_processed() {
    let queue = Queue::on(Kind::Postgres).await;
    let workers = [queue.elsewhere().await, queue.elsewhere().await];
    for _ in 0..20 {
        let view = queue.file(&["a", "b"]).await;
        let (a, b) = (mapping(&queue, &view, 0).await, mapping(&queue, &view, 1).await);
        let names: [&'static str; 2] =
            [a, b].map(|id| &*Box::leak(id.to_string().into_boxed_str()));
        tokio::join!(complete(&workers[0], a, names[0]), complete(&workers[1], b, names[1]));
        assert_eq!(queue.file_status(view.file.id).await, "processed");
    }
}

async fn failed_job(queue: &Queue, view: &FileView, place: usize) -> JobId {
    abandon(queue, mapping(queue, view, place).await).await;
    queue
        .sql(
            "UPDATE jobs SET status = 'failed', finished_at = 1 WHERE id IN \
               (SELECT job_id FROM mappings WHERE status = 'failed')",
        )
        .await;
    view.mappings[place].job_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_failed_mapping_is_retried_while_its_other_one_ends_is_on_its_way() {
    let queue = Queue::alone().await;
    let view = queue.file(&["a", "b"]).await;
    let file: FileId = view.file.id;
    let retried = failed_job(&queue, &view, 0).await;
    let open = open_retry(&queue, view.clone()).await;
    let (worker, b) = (queue.elsewhere().await, mapping(&queue, &view, 1).await);
    let mut ending = tokio::spawn(async move { complete(&worker, b, "file-b").await });
    // It ends without a lock to wait for, or waits for ours: either way it can go no further.
    eventually(Duration::from_secs(10), async || {
        (ending.is_finished() || queue.waits_for_a_lock().await).then_some(())
    })
    .await;
    open.commit().await;
    (&mut ending).await.unwrap();
    assert_eq!(queue.status(retried).await, "queued");
    assert_eq!(queue.file_status(file).await, "uploaded");
}
