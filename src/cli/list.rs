//! Lists: one page, or all of them one after another.

use clap::Args;
use comfy_table::Cell;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{client::Client, id::GivenId, output::Output};

/// Which part of a list is shown.
#[derive(Args, Clone, Debug)]
pub struct Paging {
    /// How many to show
    #[arg(long, default_value_t = 20, conflicts_with = "all", value_name = "N")]
    pub limit: u32,
    /// Start behind this one
    #[arg(long, value_name = "ID")]
    pub after: Option<GivenId>,
    /// Show all there are
    #[arg(long)]
    pub all: bool,
}

/// One page of things of which only what is shown is read.
#[derive(Debug, Deserialize)]
struct Page<T> {
    data: Vec<T>,
    #[serde(default)]
    last_id: Option<String>,
    #[serde(default)]
    has_more: bool,
}

/// A kind of thing that lists are made of.
pub trait Listed: DeserializeOwned {
    /// The column names. The id is last: it is long, and people paste it.
    const HEADINGS: &'static [&'static str];
    /// How many are asked for at a time with `--all`.
    const PAGE: u32 = 200;

    fn id(&self) -> &str;
    fn row(&self) -> Vec<Cell>;
}

/// Prints the things at `path` that match `query`. No more than one page is in memory.
pub async fn print<T: Listed>(
    client: &Client,
    output: &mut Output,
    path: &[&str],
    query: Vec<(&'static str, String)>,
    paging: Paging,
) -> anyhow::Result<()> {
    let size = if paging.all { T::PAGE } else { paging.limit };
    let mut after = paging.after.map(|id| id.to_string());
    let mut shown = Shown::default();
    loop {
        let mut query = query.clone();
        query.push(("limit", size.to_string()));
        query.extend(after.iter().map(|id| ("after", id.clone())));
        let answer = client.get::<Page<T>>(path, &query).await?;
        if output.json && !paging.all {
            return output.document(&answer.json);
        }
        let page = answer.value;
        let last = page.last_id.or_else(|| page.data.last().map(|thing| thing.id().to_owned()));
        if output.json {
            shown.elements(output, &answer.json["data"])?;
        } else {
            // The headings stand once, above the first page.
            let headings = if shown.any { &[] } else { T::HEADINGS };
            shown.any |= !page.data.is_empty();
            output.table(headings, page.data.iter().map(T::row).collect())?;
        }
        match (page.has_more, paging.all) {
            (false, _) => break,
            (true, false) => {
                let last = last.unwrap_or_default();
                output.progress.note(&format!("there are more: `--all`, or `--after {last}`"));
                break;
            }
            (true, true) => {
                anyhow::ensure!(
                    last.is_some() && last != after,
                    "the server says that there is more, but not behind which id: the list is not whole"
                );
                after = last;
            }
        }
    }
    if output.json { shown.end(output) } else { Ok(()) }
}

/// A list of all pages, written as one document while the pages come in.
#[derive(Default)]
struct Shown {
    any: bool,
    first_id: Value,
    last_id: Value,
}

impl Shown {
    fn elements(&mut self, output: &mut Output, data: &Value) -> anyhow::Result<()> {
        for element in data.as_array().into_iter().flatten() {
            if self.any {
                output.raw(b",\n")?;
            } else {
                output.raw(b"{\"object\": \"list\", \"data\": [\n")?;
                self.first_id = element["id"].clone();
            }
            self.any = true;
            self.last_id = element["id"].clone();
            output.raw(element.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// A list that broke off has no end, so that nobody takes it for a whole one.
    fn end(&self, output: &mut Output) -> anyhow::Result<()> {
        if !self.any {
            output.raw(b"{\"object\": \"list\", \"data\": [")?;
        }
        output.line(&format!(
            "\n], \"first_id\": {}, \"last_id\": {}, \"has_more\": false}}",
            self.first_id, self.last_id
        ))
    }
}
