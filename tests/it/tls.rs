//! PostgreSQL and Redis over TLS, with certificates that an authority of the test's own has signed.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::Database;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Postgres;
use crate::support::Redis;
use crate::support::eventually;
use crate::support::run;

/// An authority, and what it has signed.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn made() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = uuid::Uuid::new_v4();
        openssl(
            folder.path(),
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem \
                 -subj /CN={name}"
            ),
        );
        Self { folder }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The certificate and the key of a server that is called `localhost`.
    fn server(&self) -> (String, String) {
        let folder = self.folder.path();
        openssl(
            folder,
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr \
             -subj /CN=localhost",
        );
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
        openssl(
            folder,
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile names",
        );
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        (read("server.pem"), read("server.key"))
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let mut openssl = Command::new("openssl");
    let done = openssl.args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn postgres_of(authority: &Authority) -> Postgres {
    let mut postgres = Postgres::made();
    let (certificate, key) = authority.server();
    postgres.put("server.crt", &certificate);
    postgres.put("server.key", &key);
    postgres.set("ssl=on");
    postgres.put("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n");
    postgres.start();
    postgres
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_reached_over_tls_only_if_its_certificate_is_right() {
    let (authority, other) = (Authority::made(), Authority::made());
    let postgres = postgres_of(&authority);
    let url = |host: &str, authority: &Authority| {
        let path = authority.certificate();
        let url = postgres.url("postgres").replace("127.0.0.1", host);
        format!("{url}?sslmode=verify-full&sslrootcert={}", path.display())
    };
    let database = Some(url("localhost", &authority));
    let options = Options { database, models: &["a"], ..Options::on(Kind::Postgres) };
    let env = Env::with(options).await;
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE ssl AND application_name = 'longshore'";
    assert!(env.database.count(encrypted).await > 0);

    let refused = |url: &str| {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[auth]\nadmin_key = \"k\"\n[database]\nurl = \"{url}\"\n");
        std::fs::write(folder.path().join("longshore.toml"), text).unwrap();
        let done = run(folder.path(), &["migrate", "status"], &[]);
        assert_eq!(done.code, 1, "{}", done.log);
        done.log
    };
    let log = refused(&url("127.0.0.1", &authority));
    assert!(log.contains("not valid for name"), "{log}");
    let log = refused(&url("localhost", &other));
    assert!(log.contains("UnknownIssuer"), "{log}");
    assert!(log.contains("sslrootcert"), "{log}");
    let log = refused(&url("localhost", &authority).replace("verify-full", "disable"));
    assert!(log.contains("no pg_hba.conf entry"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_reached_over_tls_only_if_its_certificate_is_right() {
    let (authority, other) = (Authority::made(), Authority::made());
    let (certificate, key) = authority.server();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("server.pem"), certificate).unwrap();
    std::fs::write(path("server.key"), key).unwrap();
    let mut redis = Redis::made();
    redis.set(&["--tls-port", "--tls-auth-clients", "no"]);
    redis.set(&["--tls-cert-file", &path("server.pem"), "--tls-key-file", &path("server.key")]);
    redis.start();
    let table = |host: &str, authority: &Authority| {
        let (url, path) = (redis.url().replace("127.0.0.1", host), authority.certificate());
        format!("[redis]\nurl = \"{url}\"\nca_file = \"{}\"\n", path.display())
    };
    let extra = table("localhost", &authority) + "[limits]\nrequests_per_minute = 1000\n";
    let options = Options { extra, models: &["a"], ..Options::on(Kind::Postgres) };
    let env = Env::with(Options { command: "serve", ..options }).await;
    eventually(Duration::from_secs(20), async || {
        let (_, body) = env.client.get("/readyz").await;
        let counts = env.server.log().contains("the requests of keys are counted in Redis");
        (body["redis"] == "ok" && counts).then_some(())
    })
    .await;

    let database = Database::postgres_schema().await;
    let doctor = |table: &str| {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "{table}[auth]\nadmin_key = \"k\"\n[database]\nurl = \"{}\"\n[blobs]\nurl = \"file://blobs\"\n",
            database.url
        );
        std::fs::write(folder.path().join("longshore.toml"), text).unwrap();
        run(folder.path(), &["doctor"], &[])
    };
    let done = doctor(&table("localhost", &authority));
    assert!(done.output.contains("answers PING"), "{}{}", done.output, done.log);
    let done = doctor(&table("127.0.0.1", &authority));
    assert!(done.output.contains("not valid for name"), "{}{}", done.output, done.log);
    let done = doctor(&table("localhost", &other));
    assert!(done.output.contains("UnknownIssuer"), "{}{}", done.output, done.log);
    // A key is no certificate.
    let key = table("localhost", &authority).replace("ca.pem", "ca.key");
    let done = doctor(&key);
    assert_eq!(done.code, 2, "{}{}", done.output, done.log);
    assert!(done.log.contains("holds no certificate"), "{}", done.log);
    let plain = table("localhost", &authority).replace("rediss:", "redis:");
    let done = doctor(&plain);
    assert_eq!(done.code, 2, "{}{}", done.output, done.log);
    assert!(done.log.contains("`redis.ca_file` is set"), "{}", done.log);
}
