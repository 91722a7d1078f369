//! What was answered to each request of a batch.

use clap::Args;
use comfy_table::Cell;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::id::GivenId;
use crate::cli::output::Output;
use crate::cli::output::cell;
use crate::cli::output::optional;
use crate::cli::output::status;

/// How many results are asked for at a time.
const PAGE: u32 = 100;
/// How much of an answer stands in a row.
const EXCERPT_CHARS: usize = 80;
const HEADINGS: &[&str] = &["CUSTOM ID", "MODEL", "STATUS", "ANSWER"];

/// Which results are printed.
#[derive(Args, Clone, Debug)]
pub struct ResultsArgs {
    /// The id that `create` printed
    id: GivenId,
    /// Only those of this request
    #[arg(long, value_name = "ID")]
    custom_id: Option<String>,
    /// Only those of this model
    #[arg(long)]
    model: Option<String>,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
}

#[derive(Debug, Deserialize)]
struct Page {
    data: Vec<Value>,
    #[serde(default)]
    last_id: Option<String>,
    #[serde(default)]
    has_more: bool,
}

/// `longshore batches results`. No more than one page is in memory.
pub async fn run(client: &Client, output: &mut Output, args: ResultsArgs) -> anyhow::Result<()> {
    let ResultsArgs { id, custom_id, model, failed } = args;
    let failed = failed.then(|| "failed".to_owned());
    let filters = [("custom_id", custom_id), ("model", model), ("status", failed)];
    let mut query: Vec<_> =
        filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    query.push(("limit", PAGE.to_string()));
    let path = ["batches", id.as_str(), "results"];
    let mut headings = HEADINGS;
    let mut after: Option<String> = None;
    loop {
        let mut query = query.clone();
        query.extend(after.iter().map(|after| ("after", after.clone())));
        let page = client.get::<Page>(&path, &query).await?.value;
        if output.json {
            for line in &page.data {
                output.raw(format!("{line}\n").as_bytes())?;
            }
            output.flush()?;
        } else {
            output.table(headings, page.data.iter().map(row).collect())?;
        }
        if !page.data.is_empty() {
            // They stand once, above the first page.
            headings = &[];
        }
        if !page.has_more {
            // Nothing at all would look as if something had gone wrong.
            if headings == HEADINGS && !output.json {
                output.progress.note("no results");
            }
            return Ok(());
        }
        anyhow::ensure!(
            page.last_id.is_some() && page.last_id != after,
            "the server says that there is more, but not behind which id: the results are not whole"
        );
        after = page.last_id;
    }
}

/// The first results that a query finds, as rows of the table.
pub async fn rows(
    client: &Client,
    id: &str,
    query: &[(&str, String)],
) -> anyhow::Result<Vec<Vec<Cell>>> {
    let page = client.get::<Page>(&["batches", id, "results"], query).await?.value;
    Ok(page.data.iter().map(row).collect())
}

fn row(line: &Value) -> Vec<Cell> {
    vec![
        optional(line["custom_id"].as_str()),
        optional(line["model"].as_str()),
        status(line["status"].as_str().unwrap_or("-")),
        cell(&excerpt(&answer(line))),
    ]
}

/// What a person wants to see of a line: the text that was answered, or what went wrong.
fn answer(line: &Value) -> String {
    let (response, body) = (&line["response"], &line["response"]["body"]);
    let code = response["status_code"].as_u64().unwrap_or_default();
    let told = |error: &Value| {
        let parts = ["code", "message"].map(|key| error[key].as_str());
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    };
    if response.is_null() {
        return told(&line["error"]);
    }
    if !(200..300).contains(&code) {
        return format!("{code} {}", told(&body["error"])).trim_end().to_owned();
    }
    let choice = &body["choices"][0];
    let texts = [&choice["message"]["content"], &choice["message"]["refusal"], &choice["text"]];
    if let Some(text) = texts.into_iter().find_map(Value::as_str) {
        return text.to_owned();
    }
    if let Some(text) = output_text(body) {
        return text;
    }
    if let Some(embedding) = body["data"][0]["embedding"].as_array() {
        return format!("an embedding of {} numbers", embedding.len());
    }
    body.to_string()
}

/// The texts of an answer of `/v1/responses`.
fn output_text(body: &Value) -> Option<String> {
    let parts = body["output"].as_array()?.iter().filter_map(|item| item["content"].as_array());
    let texts: Vec<_> = parts.flatten().filter_map(|part| part["text"].as_str()).collect();
    (!texts.is_empty()).then(|| texts.join(" "))
}

/// One line of a bounded length.
fn excerpt(text: &str) -> String {
    // Of a text of megabytes only the beginning is worth going through.
    let beginning: String = text.chars().take(EXCERPT_CHARS * 4).collect();
    let line = beginning.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = line.chars().take(EXCERPT_CHARS).collect();
    if shown.len() < line.len() || beginning.len() < text.len() {
        format!("{shown}…")
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answered(code: u16, body: Value) -> String {
        answer(&json!({"response": {"status_code": code, "body": body}, "error": null}))
    }

    #[test]
    fn of_each_kind_of_answer_its_text_is_shown() {
        let chat = json!({"choices": [{"message": {"role": "assistant", "content": "Lima"}}]});
        let refused = json!({"choices": [{"message": {"content": null, "refusal": "No."}}]});
        let response = json!({"output": [{"type": "reasoning"},
            {"content": [{"type": "output_text", "text": "one"}, {"text": "two"}]}]});
        for (body, text) in [
            (chat, "Lima"),
            (refused, "No."),
            (json!({"choices": [{"text": "once upon"}]}), "once upon"),
            (response, "one two"),
            (json!({"data": [{"embedding": [0.5, 1.0]}]}), "an embedding of 2 numbers"),
            (json!({"flagged": false}), r#"{"flagged":false}"#),
            (json!({"choices": []}), r#"{"choices":[]}"#),
        ] {
            assert_eq!(answered(200, body), text);
        }
    }

    #[test]
    fn of_a_failure_is_shown_why() {
        let error = json!({"error": {"code": "too_long", "message": "shorten it"}});
        assert_eq!(answered(400, error), "400 too_long: shorten it");
        assert_eq!(answered(502, json!("<html>")), "502");
        let expired = json!({"code": "batch_expired", "message": "too late"});
        let line = json!({"response": null, "error": expired});
        assert_eq!(answer(&line), "batch_expired: too late");
        assert_eq!(answer(&json!({})), "");
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt("one\n two\tthree "), "one two three");
        let long = excerpt(&"ü ".repeat(10_000));
        assert!(long.ends_with('…') && long.chars().count() == EXCERPT_CHARS + 1, "{long}");
    }
}
