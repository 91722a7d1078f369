//! The commands of a client as a person meets them: what is said when something goes wrong, Ctrl-C, and
//! what a shell completes.
//!
//! The sandbox lives in this process and has to answer while a command is waited for: hence the runtime of
//! several threads.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use longshore::sandbox::Fault;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::support::ALICE_KEY;
use crate::support::Done;
use crate::support::Env;
use crate::support::Options;
use crate::support::Process;
use crate::support::run;

/// Runs a client's command as alice.
fn longshore(env: &Env, arguments: &[&str]) -> Done {
    at(&env.client.base, &env.folder(), arguments)
}

fn at(url: &str, folder: &Path, arguments: &[&str]) -> Done {
    run(folder, arguments, &[("LONGSHORE_URL", url), ("LONGSHORE_API_KEY", ALICE_KEY)])
}

fn start(url: &str, folder: &Path, arguments: &[&str]) -> Process {
    let environment = [("LONGSHORE_URL", url), ("LONGSHORE_API_KEY", ALICE_KEY)];
    Process::start(folder, arguments, &environment)
}

fn put<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["files", "put", file], more].concat()
}

const LINE: &str = r#"{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_an_upload_says_what_is_wrong_and_what_to_do() {
    let env = Env::start().await;
    let folder = env.folder();
    let on_disk = |name: &str, content: &str| std::fs::write(folder.join(name), content).unwrap();
    on_disk("notes.txt", "some bytes");
    on_disk("bad.jsonl", &format!("{LINE}\nnot json at all\n"));
    on_disk("none.jsonl", "");
    std::fs::create_dir(folder.join("folder")).unwrap();
    std::fs::File::create(folder.join("large")).unwrap().set_len(9 << 20).unwrap();
    let user_data = ["--purpose", "user_data", "--model", "a"];
    let batch = ["--purpose", "batch", "--model", "a"];
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let cases: Vec<(i32, Vec<&str>, Vec<&str>)> = vec![
        (1, put("absent", &user_data), vec!["cannot open `absent`", "No such file"]),
        (1, put("folder", &user_data), vec!["`folder`: it is a folder", "name the files in it"]),
        (
            1,
            put("notes.txt", &["--purpose", "user_data"]),
            vec!["configured: `a`, `b`, `c`", "`--model`"],
        ),
        (
            1,
            put("notes.txt", &["--purpose", "user_data", "--model", "z"]),
            vec!["no model is called `z`; configured: `a`, `b`, `c`", "longshore models"],
        ),
        (2, put("notes.txt", &["--purpose", "anything"]), vec!["possible values", "fine-tune"]),
        (1, put("large", &user_data), vec!["larger than 8MiB", "server.max_file_bytes"]),
        (1, put("bad.jsonl", &batch), vec!["line 2: ", "the line begins with `not json at all`"]),
        (1, put("none.jsonl", &batch), vec!["the file has no requests"]),
        (
            1,
            [&["files", "--api-key", "another"][..], &put("notes.txt", &user_data)[1..]].concat(),
            vec!["not known here", "LONGSHORE_API_KEY", "longshore keys create"],
        ),
        (
            1,
            put("notes.txt", &[&user_data[..], &["--url", &nowhere]].concat()),
            vec!["no server answers", "longshore up", "LONGSHORE_URL"],
        ),
        (
            1,
            put("notes.txt", &[&user_data[..], &["--url", "localhost:4700"]].concat()),
            vec!["should look like `http://host:4700`"],
        ),
    ];
    for (code, arguments, says) in cases {
        let done = longshore(&env, &arguments);
        assert_eq!(done.code, code, "{arguments:?}: {}", done.log);
        for says in says {
            assert!(done.log.contains(says), "{arguments:?}: `{says}` is not in {}", done.log);
        }
        assert_eq!(done.output, "", "{arguments:?}");
        assert!(!done.log.contains(['\u{1b}', '\r']), "{arguments:?}: {:?}", done.log);
    }
    env.holds_nothing().await;

    // The address of a provider instead of a server's.
    let url = env.sandbox.base_url("a");
    let done = at(&url, &folder, &put("notes.txt", &user_data));
    assert_eq!(done.code, 1);
    assert!(!done.log.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_files_go_up_one_after_another_and_a_bad_one_keeps_none_of_the_others() {
    let env = Env::start().await;
    let folder = env.folder();
    std::fs::write(folder.join("good.jsonl"), LINE).unwrap();
    std::fs::write(folder.join("bad.jsonl"), "[]").unwrap();
    std::fs::write(folder.join("fine.jsonl"), LINE).unwrap();
    let files = ["files", "put", "good.jsonl", "bad.jsonl", "fine.jsonl"];
    let done = longshore(
        &env,
        &[&files[..], &["--purpose", "batch", "--model", "a,b", "--wait"]].concat(),
    );
    assert_eq!(done.code, 1);
    assert!(done.log.contains("error: `bad.jsonl`: line 1: must be a JSON object"), "{}", done.log);
    assert_eq!(done.output.matches("ready").count(), 4, "{}", done.output);
    assert!(!(done.output + &done.log).contains(['\u{1b}', '\r']));
}

/// Between a client and its server: takes the first answers away once the server has given them, and then
/// lets all through.
async fn lossy(server: &str, losses: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = server.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&server).await.unwrap();
            if number >= losses {
                tokio::spawn(async move {
                    // Either side may hang up.
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                });
                continue;
            }
            let (mut from_client, _to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let mut first = [0; 1];
            tokio::select! {
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                answered = from_server.read(&mut first) => assert_eq!(answered.unwrap(), 1),
            }
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_answer_is_lost_is_repeated_and_stored_once() {
    let env = Env::start().await;
    let folder = env.folder();
    std::fs::write(folder.join("notes.txt"), "some bytes").unwrap();
    let url = lossy(&env.client.base, 1).await;
    let done = at(&url, &folder, &put("notes.txt", &["--purpose", "user_data", "--model", "a"]));
    assert_eq!(done.code, 0, "{}", done.log);
    assert!(done.log.contains("warning: lost the connection"), "{}", done.log);
    assert!(done.log.contains("trying again in"), "{}", done.log);
    assert_eq!(env.database.count("SELECT count(*) FROM files").await, 1);

    // Where it never comes through, it says with which key the next try is safe.
    let url = lossy(&env.client.base, 100).await;
    let arguments = put("notes.txt", &["--purpose", "user_data", "--model", "a"]);
    let done = at(&url, &folder, &arguments);
    assert_eq!(done.code, 1, "{}", done.log);
    let (_, rest) = done.log.rsplit_once("--idempotency-key ").unwrap();
    let key = rest.split('`').next().unwrap();
    let done = longshore(&env, &[&arguments[..], &["--idempotency-key", key]].concat());
    assert_eq!(done.code, 0, "{}", done.log);
    assert_eq!(env.database.count("SELECT count(*) FROM files").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_and_a_sweep_whose_answers_are_lost_are_repeated_and_done_once() {
    let env = Env::start().await;
    let folder = env.folder();
    let ids = env.seed("alice", 3).await;
    let url = lossy(&env.client.base, 1).await;
    let done = at(&url, &folder, &["files", "rm", &ids[0]]);
    assert_eq!((done.code, done.output.trim()), (0, ids[0].as_str()), "{}", done.log);
    assert!(done.log.contains("warning: lost the connection"), "{}", done.log);

    let url = lossy(&env.client.base, 1).await;
    let done = at(&url, &folder, &["sweeps", "--json", "run", "--all", "--yes", "--wait"]);
    assert_eq!(done.code, 0, "{}", done.log);
    assert!(done.log.contains("warning: lost the connection"), "{}", done.log);
    let sweep: Value = serde_json::from_str(&done.output).unwrap();
    assert_eq!(sweep["counts"]["deleted"], 2, "{sweep}");
    assert_eq!(env.database.count("SELECT count(*) FROM sweeps").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_a_wait_for_deletes_says_how_to_go_on() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let folder = env.folder();
    let ids = env.seed("alice", 2).await;
    for (arguments, says) in [
        (vec!["files", "rm", "--wait", &ids[0]], "the same command waits for it again"),
        (vec!["sweeps", "run", "--all", "--yes", "--wait"], "`longshore sweeps show --wait sweep_"),
        (vec!["sweeps", "run", "--all", "--dry-run"], "interrupted: nothing was deleted"),
    ] {
        let command = start(&env.client.base, &folder, &arguments);
        // From its first look on it waits; a worker, which would end the wait, does not run.
        tokio::time::sleep(Duration::from_millis(500)).await;
        command.signal("INT");
        let done = command.done();
        assert_eq!(done.code, 130, "{arguments:?}: {}", done.log);
        assert!(done.log.contains(says), "{arguments:?}: {}", done.log);
    }
}

/// A server that takes a connection and then does nothing, after reading as much as `reads` says.
async fn silent(reads: bool) -> (String, tokio::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, sees) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        // The closing boundary ends a form.
        while !read.ends_with(b"--\r\n") {
            if stream.read_buf(&mut read).await.unwrap() == 0 || !reads {
                break;
            }
        }
        seen.send(()).await.unwrap();
        std::future::pending::<()>().await;
        stream.shutdown().await.unwrap();
    });
    (url, sees)
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_an_upload_says_what_became_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "some bytes").unwrap();
    std::fs::File::create(folder.path().join("large")).unwrap().set_len(256 << 20).unwrap();
    let purpose = ["--purpose", "user_data"];

    let (url, mut sees) = silent(true).await;
    let command = start(&url, folder.path(), &put("notes.txt", &purpose));
    sees.recv().await.unwrap();
    command.signal("INT");
    let done = command.done();
    assert_eq!(done.code, 130, "{}", done.log);
    for says in ["interrupted: `notes.txt` was sent, but not answered", "--idempotency-key "] {
        assert!(done.log.contains(says), "{}", done.log);
    }

    let (url, mut sees) = silent(false).await;
    let command =
        start(&url, folder.path(), &put("large", &[&["notes.txt"], &purpose[..]].concat()));
    sees.recv().await.unwrap();
    command.signal("TERM");
    let done = command.done();
    assert_eq!(done.code, 130, "{}", done.log);
    for says in ["interrupted: `large` was not stored", "1 more were not sent"] {
        assert!(done.log.contains(says), "{}", done.log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_an_upload_tells_in_lines_how_far_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::File::create(folder.path().join("large")).unwrap().set_len(256 << 20).unwrap();
    let (url, mut sees) = silent(false).await;
    let mut command = start(&url, folder.path(), &put("large", &["--purpose", "user_data"]));
    sees.recv().await.unwrap();
    let line = tokio::task::block_in_place(|| command.logged("large: "));
    assert!(line.contains(" of 256 MiB, ") && line.contains("B/s"), "{line}");
    assert!(!command.log().contains(['\u{1b}', '\r']));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_a_wait_leaves_the_file_on_its_way_and_says_how_to_go_on() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let folder = env.folder();
    std::fs::write(folder.join("notes.txt"), "some bytes").unwrap();
    let waiting = ["--purpose", "user_data", "--model", "a", "--wait"];
    let command = start(&env.client.base, &folder, &put("notes.txt", &waiting));
    let id = tokio::task::block_in_place(|| command.printed("bG9uZ3")).trim().to_owned();
    // From its first look on it waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    command.signal("INT");
    let done = command.done();
    assert_eq!(done.code, 130, "{}", done.log);
    let says = format!("interrupted: the file goes on at the server: `longshore files wait {id}`");
    assert!(done.log.contains(&says), "{}", done.log);

    // A script gets the ids all the same.
    let more = [&waiting[..], &["--json"]].concat();
    let command = start(&env.client.base, &folder, &put("notes.txt", &more));
    crate::support::eventually(Duration::from_secs(20), async || {
        (env.database.count("SELECT count(*) FROM files").await == 2).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    command.signal("INT");
    let done = command.done();
    assert_eq!(done.code, 130, "{}", done.log);
    let file: Value = serde_json::from_str(&done.output).unwrap();
    assert_eq!(file["status"], "uploaded", "{file}");

    let worker = env.also("work");
    let done = longshore(&env, &["files", "wait", &id]);
    assert_eq!(done.code, 0, "{}", done.log);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_whose_time_is_up_says_how_to_go_on() {
    let env = Env::start().await;
    env.spoil("a", Fault::Hang { executed: false });
    let folder = env.folder();
    std::fs::write(folder.join("notes.txt"), "some bytes").unwrap();
    let arguments = put("notes.txt", &["--purpose", "user_data", "--model", "a", "--wait=1"]);
    let done = longshore(&env, &arguments);
    assert_eq!(done.code, 1);
    assert!(
        done.log.contains("`notes.txt` is still `uploaded` and the time is up"),
        "{}",
        done.log
    );
    let id = done.output.lines().next().unwrap();
    assert!(done.log.contains(&format!("`longshore files wait {id}`")), "{}", done.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_as_a_table_and_as_json() {
    let env = Env::start().await;
    let done = longshore(&env, &["models"]);
    assert_eq!(done.code, 0, "{}", done.log);
    let rows: Vec<Vec<_>> =
        done.output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["MODEL", "PROVIDER"], ["a", "at-a"], ["b", "at-b"], ["c", "at-c"]]);
    let json: Value = serde_json::from_str(&longshore(&env, &["models", "--json"]).output).unwrap();
    assert_eq!(json["data"][2]["id"], "c");
}

#[test]
fn a_shell_completes_commands_options_and_values() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = run(folder.path(), &["completions", shell], &[]);
        assert_eq!((done.code, done.log.as_str()), (0, ""), "{shell}");
        for word in ["longshore", "doctor", "idempotency-key", "files-from", "completions"] {
            assert!(done.output.contains(word), "{shell}: no `{word}`");
        }
    }
    assert_eq!(run(folder.path(), &["completions", "dos"], &[]).code, 2);

    // What bash itself makes of it.
    let script = r#"source <("$LONGSHORE" completions bash) && complete -p longshore &&
        COMP_WORDS=(longshore files put --purpose fi) COMP_CWORD=4 && _longshore longshore fi --purpose &&
        echo "completed: ${COMPREPLY[*]}""#;
    let bash = Command::new("bash")
        .args(["-c", script])
        .env("LONGSHORE", env!("CARGO_BIN_EXE_longshore"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&bash.stdout);
    assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
    assert!(output.contains("-F _longshore longshore"), "{output}");
    assert!(output.contains("completed: fine-tune"), "{output}");
}

#[test]
fn the_help_of_every_command_can_be_shown() {
    let folder = tempfile::tempdir().unwrap();
    let help = run(folder.path(), &["--help"], &[]);
    assert!(help.output.contains("First steps:") && help.output.contains("Exit codes:"));
    let commands = [
        "up",
        "backup",
        "doctor",
        "models",
        "completions",
        "files put",
        "files rm",
        "jobs ls",
        "sweeps run",
        "sweeps show",
        "keys create",
    ];
    for command in commands {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let done = run(folder.path(), &arguments, &[]);
        assert_eq!(done.code, 0, "{command}");
        assert!(done.output.contains("Usage: longshore"), "{command}: {}", done.output);
    }
}
