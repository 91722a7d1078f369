//! PostgreSQL and Redis restarted, killed, frozen and cut off.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::PgConnection;

use crate::support::Postgres;
use crate::support::Proxy;
use crate::support::Redis;
use crate::support::eventually;

#[tokio::test]
async fn a_server_of_the_tests_own_comes_back_with_what_it_held() {
    let mut postgres = Postgres::running();
    postgres.put("postgresql.auto.conf", "log_connections = on\n");
    postgres.set("log_disconnections=on");
    let proxy = Proxy::before(postgres.port);
    let url = proxy.url(&postgres.url("postgres"));
    let ask = async |sql: &'static str| {
        let mut connection = PgConnection::connect(&url).await?;
        connection.execute(sql).await?;
        connection.close().await
    };
    ask("CREATE TABLE kept (n bigint)").await.unwrap();
    postgres.restart();
    ask("INSERT INTO kept VALUES (1)").await.unwrap();
    postgres.kill();
    ask("SELECT * FROM kept").await.unwrap_err();
    postgres.start();
    ask("SELECT 1 / n FROM kept").await.unwrap();
    proxy.cut();
    ask("SELECT * FROM kept").await.unwrap_err();
    proxy.half_open();
    let silence = tokio::time::timeout(Duration::from_millis(300), ask("SELECT 1"));
    assert!(silence.await.is_err());
    proxy.pass();
    ask("SELECT * FROM kept").await.unwrap();
    proxy.cut_after("COMMIT");
    ask("BEGIN; INSERT INTO kept VALUES (2); COMMIT").await.unwrap_err();
    assert!(proxy.has_torn());
    assert!(postgres.log().contains("connection authorized"), "{}", postgres.log());
    ask("UPDATE kept SET n = 1 / (n - 1) WHERE n = 2").await.unwrap();
    proxy.delay(Duration::from_millis(5));
    proxy.cut_before("UPDATE");
    ask("UPDATE kept SET n = 0").await.unwrap_err();
    ask("SELECT 1 / n FROM kept").await.unwrap();
    assert!(proxy.accepted() > 4 && proxy.sent() > 0 && proxy.received() > 0);
    eventually(Duration::from_secs(5), async || (proxy.open() == 0).then_some(())).await;

    let mut redis = Redis::running();
    redis.flush().await;
    redis.freeze();
    assert!(tokio::time::timeout(Duration::from_millis(300), redis.flush()).await.is_err());
    redis.thaw();
    redis.flush().await;
    redis.kill();
    redis.start();
    redis.restart();
    redis.stop();
    redis.set(&["--maxmemory", "10mb"]);
    redis.start();
    redis.flush().await;
}
