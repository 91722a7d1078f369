//! The command line: exit codes, what is printed, and what is not.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use serde_json::Value;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Process;
use crate::support::run;

fn write(folder: &std::path::Path, text: &str) {
    std::fs::write(folder.join("longshore.toml"), text).unwrap();
}

#[test]
fn the_example_of_a_configuration_is_in_order_once_its_variables_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let example = run(folder.path(), &["config", "example"], &[]);
    assert_eq!(example.code, 0);
    write(folder.path(), &example.output);
    let check = run(
        folder.path(),
        &["config", "check"],
        &[("OPENAI_API_KEY", "sk-x"), ("LONGSHORE_ADMIN_KEY", "adm-x")],
    );
    assert_eq!(check.code, 0, "{}", check.log);
    assert!(check.output.contains("longshore.toml is in order"), "{}", check.output);
    assert!(!check.output.contains("sk-x") && !check.output.contains("adm-x"));
}

#[test]
fn a_broken_configuration_is_exit_code_2_with_the_file_and_the_line() {
    for (text, says) in [
        (
            "[server]\nlisten = \"127.0.0.1:0\"\nlisen = 5\n",
            "longshore.toml:3: `server.lisen` is not a setting",
        ),
        ("[server]\nlisten = 5\n", "longshore.toml:2"),
        ("[workers]\nlease = \"soon\"\n", "longshore.toml:2"),
        ("[server\n", "longshore.toml:1"),
        ("[auth]\nadmin_key = \"${NOT_SET_ANYWHERE}\"\n", "NOT_SET_ANYWHERE"),
        ("[[models]]\nname = \"m\"\nprovider = \"nobody\"\n", "longshore.toml:3"),
        ("[redis]\nurl = \"redis://127.0.0.1\"\n", "Redis joins processes, SQLite does not"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), text);
        for command in [
            &["config", "check"][..],
            &["up"],
            &["serve"],
            &["work"],
            &["migrate"],
            &["keys", "list"],
            &["doctor"],
            &["backup", "copy"],
        ] {
            let done = run(folder.path(), command, &[]);
            assert_eq!(done.code, 2, "{command:?}: {}", done.log);
            assert!(done.log.contains(says), "{command:?}: `{}` does not say `{says}`", done.log);
            assert_eq!(done.output, "");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(folder.path(), &["--config", "nowhere.toml", "up"], &[]).code, 2);
    assert_eq!(run(folder.path(), &["dance"], &[]).code, 2);
}

#[tokio::test]
async fn a_start_with_nothing_says_what_to_do_next_and_prints_an_admin_key_once() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("LONGSHORE__SERVER__LISTEN", "127.0.0.1:0")];
    let mut server = Process::start(folder.path(), &["up"], &environment);
    let line = server.logged("listening on http://");
    assert!(!line.contains('\u{1b}'), "colours in a log that is no terminal: {line:?}");
    for says in
        ["these are the defaults", "OPENAI_API_KEY", "longshore config example", "longshore demo"]
    {
        server.logged(says);
    }
    let base = format!("http://{}", line.rsplit_once("http://").unwrap().1.trim());
    let printed = server.printed("lsk_");
    let key = printed.trim();
    assert!(server.output().contains("shown this once"));
    assert_eq!(Client::new(&base, key).get("/v1/admin/keys").await.0, 200);
    assert!(!server.log().contains(key), "the key is in the log");
    assert!(server.terminate().0.success());

    let mut again = Process::start(folder.path(), &["up"], &environment);
    again.logged("listening on http://");
    assert!(again.terminate().0.success());
    assert_eq!(again.all().0, "");
}

#[test]
fn without_a_key_it_does_not_listen_where_others_can_reach_it() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(folder.path(), &["up"], &[("LONGSHORE__SERVER__LISTEN", "0.0.0.0:0")]);
    assert_eq!(done.code, 2, "{}", done.log);
    assert!(
        done.log.contains("`server.listen` is `0.0.0.0:0`")
            && done.log.contains("LONGSHORE_ADMIN_KEY"),
        "{}",
        done.log
    );
    assert_eq!(done.output, "");
    let environment = [
        ("LONGSHORE__SERVER__LISTEN", "0.0.0.0:0"),
        ("LONGSHORE_ADMIN_KEY", "a-long-enough-key-of-ours"),
    ];
    let mut server = Process::start(folder.path(), &["up"], &environment);
    server.logged("listening on http://");
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_while_the_server_runs() {
    let env = Env::start().await;
    let made = run(&env.folder(), &["keys", "create", "--owner", "carol"], &[]);
    assert_eq!(made.code, 0, "{}", made.log);
    let carol = env.as_key(made.output.trim());
    carol.upload(&["a"]).await;
    let listed = run(&env.folder(), &["keys", "list"], &[]);
    assert!(
        listed.output.contains("carol") && !listed.output.contains(made.output.trim()),
        "{}",
        listed.output
    );
    let id =
        listed.output.split_whitespace().find(|word| word.starts_with("key_")).unwrap().to_owned();
    assert_eq!(run(&env.folder(), &["keys", "revoke", &id], &[]).code, 0);
    crate::support::eventually(Duration::from_secs(10), async || {
        (carol.get("/v1/files").await.0 == 401).then_some(())
    })
    .await;
    assert_eq!(run(&env.folder(), &["keys", "revoke", &id], &[]).code, 1);
    assert_eq!(run(&env.folder(), &["keys", "revoke", "nonsense"], &[]).code, 2);
    assert_eq!(run(&env.folder(), &["keys", "create", "--owner", " "], &[]).code, 2);
}

#[test]
fn migrations_are_applied_once_and_shown_before() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "[database]\nurl = \"sqlite://longshore.db\"\n");
    let status = run(folder.path(), &["migrate", "status"], &[]);
    assert_eq!(status.code, 1, "{}", status.log);
    assert!(status.output.contains("create_files"), "{}", status.output);
    let applied = run(folder.path(), &["migrate"], &[]);
    assert_eq!((applied.code, applied.output.contains("up to date")), (0, true), "{}", applied.log);
    assert_eq!(run(folder.path(), &["migrate", "status"], &[]).code, 0);
    assert_eq!(run(folder.path(), &["migrate"], &[]).code, 0);
}

// The sandbox lives in this process and has to answer while a command is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_up_and_comes_back_by_the_command_line() {
    let env = Env::start().await;
    let folder = env.folder();
    let environment =
        [("LONGSHORE_URL", env.client.base.as_str()), ("LONGSHORE_API_KEY", ALICE_KEY)];
    let longshore = |arguments: &[&str]| run(&folder, arguments, &environment);
    std::fs::write(folder.join("notes.txt"), "some bytes").unwrap();
    let put = longshore(&[
        "files",
        "--json",
        "put",
        "notes.txt",
        "--purpose",
        "user_data",
        "--model",
        "a,b",
        "--metadata",
        "k=v",
        "--wait",
    ]);
    assert_eq!(put.code, 0, "{}", put.log);
    let file: Value = serde_json::from_str(&put.output).unwrap();
    assert_eq!((&file["status"], &file["metadata"]["k"]), (&"processed".into(), &"v".into()));
    let id = file["id"].as_str().unwrap();
    let shown = longshore(&["files", "show", id]);
    assert!(
        shown.output.contains("notes.txt") && shown.output.contains("ready"),
        "{}",
        shown.output
    );
    assert!(longshore(&["files", "ls"]).output.contains(id));
    assert_eq!(longshore(&["files", "get", id]).output, "some bytes\n");
    assert_eq!(longshore(&["files", "wait", id]).code, 0);
    let jobs = longshore(&["jobs", "--json", "ls"]);
    let jobs: Value = serde_json::from_str(&jobs.output).unwrap();
    assert_eq!(jobs["data"].as_array().unwrap().len(), 2);
    let job = jobs["data"][0]["id"].as_str().unwrap();
    assert!(longshore(&["jobs", "show", job, "--attempts"]).output.contains("succeeded"));

    let refused =
        longshore(&["files", "put", "notes.txt", "--purpose", "user_data", "--model", "nowhere"]);
    assert_eq!(refused.code, 1);
    assert!(refused.log.contains("no model is called `nowhere`"), "{}", refused.log);
    assert_eq!(longshore(&["files", "put", "missing.txt", "--purpose", "batch"]).code, 1);
    assert_eq!(longshore(&["files", "put"]).code, 2);
    let stranger =
        run(&folder, &["files", "ls"], &[environment[0], ("LONGSHORE_API_KEY", "nobody's")]);
    assert_eq!(stranger.code, 1);
    assert!(stranger.log.contains("not known here"), "{}", stranger.log);
    let admin = run(&folder, &["files", "ls"], &[environment[0], ("LONGSHORE_API_KEY", ADMIN_KEY)]);
    assert!(admin.output.contains(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_deleted_by_the_command_line_and_their_receipts_shown() {
    let env = Env::start().await;
    let folder = env.folder();
    let environment =
        [("LONGSHORE_URL", env.client.base.as_str()), ("LONGSHORE_API_KEY", ALICE_KEY)];
    let longshore = |arguments: &[&str]| run(&folder, arguments, &environment);
    let ids = env.seed("alice", 3).await;
    let refused = Fault::status(405, Value::Null);
    env.spoil_as("a", FaultRule::new(Operation::Delete, refused));

    let stuck = longshore(&["files", "rm", "--wait", &ids[0]]);
    assert_eq!(stuck.code, 1, "{}", stuck.log);
    assert!(stuck.output.contains("undeletable"), "{}", stuck.output);
    let (_, job) = stuck.log.split_once("`longshore jobs retry ").unwrap();
    let job = job.split('`').next().unwrap();
    assert_eq!(longshore(&["jobs", "retry", job]).code, 0);

    // The same command again waits for what is deleted already.
    let gone = longshore(&["files", "rm", "--wait", &ids[0], &ids[1]]);
    assert_eq!(gone.code, 0, "{}", gone.log);
    assert_eq!(gone.output.matches("deleted, answered 200, checked").count(), 2, "{}", gone.output);
    assert!(gone.log.contains("was deleted already, at 20"), "{}", gone.log);
    assert_eq!(env.sandbox.live_files("a").len(), 1);

    let nonsense = longshore(&["files", "rm", "nonsense", &ids[2]]);
    assert_eq!((nonsense.code, nonsense.output.trim()), (1, ids[2].as_str()), "{}", nonsense.log);
    assert!(nonsense.log.contains("error: no such file: `nonsense`"), "{}", nonsense.log);
    assert!(!nonsense.log.contains("already"), "{}", nonsense.log);
    let answers = longshore(&["files", "--json", "rm", "--wait", &ids[1], &ids[2]]);
    let statuses: Vec<Value> = answers
        .output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].clone())
        .collect();
    assert_eq!(statuses, ["done", "done"], "{}", answers.output);
    assert_eq!(longshore(&["files", "rm"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_swept_by_the_command_line() {
    let env = Env::start().await;
    let folder = env.folder();
    let environment =
        [("LONGSHORE_URL", env.client.base.as_str()), ("LONGSHORE_API_KEY", ALICE_KEY)];
    let longshore = |arguments: &[&str]| run(&folder, arguments, &environment);
    let ids = env.seed("alice", 30).await;

    let unasked = longshore(&["sweeps", "run", "--all"]);
    assert_eq!((unasked.code, unasked.output.as_str()), (2, ""));
    assert!(unasked.log.contains("`--yes` deletes without asking"), "{}", unasked.log);
    let counted = longshore(&["sweeps", "run", "--purpose", "user_data", "--dry-run"]);
    assert_eq!(counted.code, 0, "{}", counted.log);
    assert!(counted.output.contains("matched   30"), "{}", counted.output);
    assert_eq!(env.sandbox.live_files("a").len(), 30, "it only counts");

    std::fs::write(folder.join("ids"), format!("{}\n{}\n", ids[0], ids[1])).unwrap();
    let named = ["sweeps", "--json", "run", "--files-from", "ids", "--file", &ids[2]];
    let named = longshore(&[&named[..], &["--yes", "--wait"]].concat());
    assert_eq!(named.code, 0, "{}", named.log);
    let named: Value = serde_json::from_str(&named.output).unwrap();
    assert_eq!((&named["status"], &named["counts"]["deleted"]), (&"succeeded".into(), &3.into()));

    let begun = longshore(&["sweeps", "run", "--metadata", "number=3", "-y"]);
    assert_eq!(begun.code, 0, "{}", begun.log);
    let id = begun.output.trim();
    let shown = longshore(&["sweeps", "show", id, "--wait"]);
    assert_eq!(shown.code, 0, "{}", shown.log);
    assert!(shown.output.contains("succeeded"), "{}", shown.output);
    assert!(shown.output.contains("metadata number=3"), "{}", shown.output);
    let late = longshore(&["sweeps", "cancel", id]);
    assert_eq!((late.code, late.output.as_str()), (1, ""));
    assert!(late.log.contains("the sweep has already ended"), "{}", late.log);

    let listed = longshore(&["sweeps", "ls", "--all"]);
    assert_eq!(listed.output.lines().count(), 4, "{}", listed.output);
    assert!(listed.output.contains("dry run"), "{}", listed.output);
    let strange = longshore(&["sweeps", "run", "--file", "nonsense", "--yes"]);
    assert_eq!(strange.code, 1);
    assert!(strange.log.contains("no such file: `nonsense`"), "{}", strange.log);
    let unsaid = longshore(&["sweeps", "run", "--yes"]);
    assert_eq!(unsaid.code, 2);
    assert!(unsaid.log.contains("--created-before"), "{}", unsaid.log);
}

#[test]
fn the_demo_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(folder.path(), &["demo", "--once"], &[]);
    assert_eq!(done.code, 0, "{}", done.log);
    assert!(done.output.contains("The file is `processed`"), "{}", done.output);
    assert!(done.output.contains("The batch is `completed`"), "{}", done.output);
    assert!(done.output.contains("6752 of 6752, 33 failed"), "{}", done.output);
    assert!(done.output.contains("The deletions are done"), "{}", done.output);
    assert!(done.output.contains("The providers hold 0 files."), "{}", done.output);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_sandbox_runs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["sandbox", "--listen", "127.0.0.1:0", "--account", "blue", "--fail-uploads", "1"];
    let mut sandbox = Process::start(folder.path(), &arguments, &[]);
    let line = sandbox.printed("blue: base_url = ");
    let base = line.split('"').nth(1).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let upload = async || {
        let part = reqwest::multipart::Part::bytes(b"x".to_vec()).file_name("x.txt");
        let form = reqwest::multipart::Form::new().text("purpose", "user_data").part("file", part);
        http.post(format!("{base}/files"))
            .bearer_auth("k")
            .multipart(form)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!((upload().await, upload().await), (503, 200));
    assert!(sandbox.terminate().0.success());
}
