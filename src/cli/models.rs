//! `longshore models`: the models that a running server sends files to.

use std::process::ExitCode;

use comfy_table::Cell;
use serde::Deserialize;

use super::client::Client;
use super::list::Listed;
use super::output::Output;
use super::output::cell;
use super::output::optional;
use super::output::unless_closed;

/// A model. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
struct ModelObject {
    id: String,
    /// The provider, or the first of them where several deployments share the name.
    #[serde(default)]
    owned_by: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<ModelObject>,
}

impl Listed for ModelObject {
    const HEADINGS: &'static [&'static str] = &["MODEL", "PROVIDER"];

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        vec![cell(&self.id), optional(self.owned_by.as_deref())]
    }
}

/// The models that `--model` may name.
///
/// # Errors
/// The call failed, and nothing was said about it yet.
pub async fn run(client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    let result = list(client, &mut Output::standard(json)).await;
    unless_closed(result.map(|()| ExitCode::SUCCESS))
}

async fn list(client: &Client, output: &mut Output) -> anyhow::Result<()> {
    let models = client.get::<Models>(&["models"], &[]).await?;
    if output.json {
        return output.document(&models.json);
    }
    if models.value.data.is_empty() {
        output.progress.note(
            "no model is configured at the server: add `[[models]]`, as `longshore config example` shows it",
        );
    }
    output.table(ModelObject::HEADINGS, models.value.data.iter().map(Listed::row).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::scripted::Kept;
    use crate::cli::scripted::Server;
    use crate::cli::scripted::Step;

    #[tokio::test]
    async fn models_are_listed_with_their_provider() {
        let answer = json!({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "north"}, {"id": "n"}]});
        let server = Server::start([Step::json(200, &answer), Step::json(200, &answer)]).await;
        let kept = Kept::default();
        list(&server.client(), &mut Output::kept(false, kept.clone())).await.unwrap();
        assert_eq!(kept.text(), "MODEL  PROVIDER\nm      north\nn      -\n");
        let kept = Kept::default();
        list(&server.client(), &mut Output::kept(true, kept.clone())).await.unwrap();
        assert_eq!(kept.json(), answer);
        assert_eq!(server.lines(), ["GET /v1/models"; 2]);
    }
}
