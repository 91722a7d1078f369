//! `longshore files get` against a scripted server.

use super::*;

fn content(bytes: &'static [u8]) -> Step {
    Step::Answer(200, vec![], bytes.into())
}

#[tokio::test]
async fn a_file_appears_whole_under_its_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.bin");
    let server = Server::start([content(b"\0\xff!")]).await;
    let ran = run(&server, &["get", "f1", "-o", path.to_str().unwrap()]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    assert_eq!(fs::read(&path).unwrap(), b"\0\xff!");
    assert_eq!(names(&folder), ["out.bin"]);
    assert_eq!(server.lines(), ["GET /v1/files/f1/content"]);
}

#[tokio::test]
async fn a_download_that_breaks_off_leaves_nothing_and_the_old_file_as_it_was() {
    let folder = TempDir::new().unwrap();
    let old = on_disk(&folder, "old", "before");
    let new = folder.path().join("new");
    let server =
        Server::start([Step::BreakOff(10, "half".into()), Step::BreakOff(10, "half".into())]).await;
    assert!(run(&server, &["get", "f1", "-o", &old, "--force"]).await.result.is_err());
    assert!(run(&server, &["get", "f1", "-o", new.to_str().unwrap()]).await.result.is_err());
    assert_eq!(fs::read(&old).unwrap(), b"before");
    assert_eq!(names(&folder), ["old"]);
}

#[tokio::test]
async fn what_exists_is_overwritten_only_by_force() {
    let folder = TempDir::new().unwrap();
    let old = on_disk(&folder, "old", "a longer text before");
    let server = Server::start([content(b"after")]).await;
    let ran = run(&server, &["get", "f1", "-o", &old]).await;
    assert!(ran.message().contains("`--force` overwrites it"), "{}", ran.message());
    assert!(server.lines().is_empty(), "it was asked for in vain");
    run(&server, &["get", "f1", "-o", &old, "--force"]).await.result.unwrap();
    assert_eq!(fs::read(&old).unwrap(), b"after");
}

#[tokio::test]
async fn a_folder_or_a_device_is_not_replaced_even_by_force() {
    let folder = TempDir::new().unwrap();
    let server = Server::start([]).await;
    for target in [folder.path(), Path::new("/dev/null")] {
        let ran = run(&server, &["get", "f1", "-o", target.to_str().unwrap(), "--force"]).await;
        assert!(ran.message().contains("not a regular file"), "{}", ran.message());
    }
}

#[tokio::test]
async fn what_a_killed_download_left_is_taken_over_but_not_what_another_is_writing() {
    let folder = TempDir::new().unwrap();
    let part = on_disk(&folder, "out.part", "left by a download that was killed");
    let out = folder.path().join("out");
    let server = Server::start([content(b"new")]).await;
    let other = fs::File::open(&part).unwrap();
    other.lock().unwrap();
    let ran = run(&server, &["get", "f1", "-o", out.to_str().unwrap()]).await;
    assert!(ran.message().contains("another download"), "{}", ran.message());
    assert_eq!(names(&folder), ["out.part"]);
    drop(other);
    run(&server, &["get", "f1", "-o", out.to_str().unwrap()]).await.result.unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"new");
    assert_eq!(names(&folder), ["out"]);
}

#[tokio::test]
async fn a_script_that_saves_a_file_gets_the_file_object() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let server = Server::start([ok(&file("f1", "processed")), content(b"x")]).await;
    let ran = run_json(&server, &["get", "f1", "-o", out.to_str().unwrap()]).await;
    assert_eq!(ran.kept.json()["id"], "f1");
}

#[tokio::test]
async fn a_terminal_gets_text_and_binary_content_only_when_asked_twice() {
    let server = Server::start([content(b"text"), content(b"\0"), content(b"\0")]).await;
    let terminal = |output: &mut Output| output.is_terminal = true;
    assert_eq!(run_with(&server, terminal, &["get", "f1"]).await.kept.bytes(), b"text");
    let guarded = run_with(&server, terminal, &["get", "f1"]).await;
    assert!(guarded.message().contains("--output"), "{}", guarded.message());
    assert!(guarded.kept.bytes().is_empty());
    assert_eq!(run_with(&server, terminal, &["get", "f1", "-o", "-"]).await.kept.bytes(), b"\0");
}

#[tokio::test]
async fn a_pipe_gets_everything() {
    let server = Server::start([content(b"\0\x1b\xff")]).await;
    assert_eq!(run(&server, &["get", "f1"]).await.kept.bytes(), b"\0\x1b\xff");
}
