//! Uploads files from disk, once each, however often the connection breaks.

pub(super) mod source;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use clap::builder::PossibleValuesParser;
use indicatif::ProgressBar;
use reqwest::multipart::Form;
use serde_json::Value;
use uuid::Uuid;

use super::{FileObject, Mapping, object::Stage, one_or_list, wait};
use crate::cli::{
    client::{Answer, Client, Failure, Repeats},
    interrupt::{Interrupt, Interrupted},
    output::{Closed, Output, bytes, cell, plain, wrong_usage},
    pairs,
    progress::Progress,
    watch,
};
use crate::files::Purpose;
use source::{Source, State};

const REPEATS: Repeats = Repeats(3);
/// How often progress is told where no bar can be drawn, in units of the client.
const TOLD_EVERY: u32 = 10;

/// What is uploaded, and for what.
#[derive(Args, Clone, Debug)]
pub struct PutArgs {
    /// The files to upload
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What they are for
    #[arg(long, value_parser = PossibleValuesParser::new(Purpose::UPLOADED.map(Purpose::as_str)))]
    purpose: String,
    /// The models to send them to, comma-separated or repeated, as `longshore models` lists them; without
    /// it, the server's default models
    #[arg(long = "model", value_delimiter = ',', value_name = "MODEL")]
    models: Vec<String>,
    /// After how long the files go by themselves, from `1h` to `30d`; without it, never
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    expires_after: Option<Duration>,
    /// Pairs to keep with the files; repeat for each
    #[arg(long, value_parser = pairs::pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
    /// Wait until the files are at every provider, at most so many seconds [default: 600]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "600",
        value_parser = watch::seconds,
        value_name = "SECONDS"
    )]
    wait: Option<Duration>,
    /// What makes an upload that is repeated count once; without it, a fresh one for each file
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// `longshore files put`.
///
/// Every file is opened before the first is sent, so that a wrong name costs nothing. A file that
/// fails later does not keep the others.
pub async fn run(client: &Client, output: &mut Output, args: PutArgs) -> anyhow::Result<ExitCode> {
    if args.files.len() > 1 && args.idempotency_key.is_some() {
        return Ok(wrong_usage(
            "`--idempotency-key` stands for one upload: give it with a single FILE",
        ));
    }
    let metadata = match pairs::object(&args.metadata) {
        Ok(pairs) => (!pairs.is_empty()).then(|| Value::Object(pairs).to_string()),
        Err(key) => return Ok(wrong_usage(&format!("`--metadata {key}=…` is given twice"))),
    };
    let mut sources = Vec::with_capacity(args.files.len());
    for path in &args.files {
        sources.push(Source::check(path).await?);
    }

    for empty in sources.iter().filter(|source| source.bytes == 0) {
        let shown = empty.path.display();
        output.progress.note(&format!("warning: `{shown}` is empty; it is sent all the same"));
    }

    let mut interrupt = Interrupt::listen();
    let (mut stored, mut interrupted) =
        upload_all(client, output, &sources, &args, metadata.as_deref(), &mut interrupt).await?;
    let mut is_good = stored.len() == sources.len();
    if let (Some(timeout), None) = (args.wait, &interrupted) {
        match wait_for_all(client, output, &mut stored, timeout, &mut interrupt).await {
            Ok(is_everywhere) => is_good &= is_everywhere,
            Err(error) => match error.downcast::<Interrupted>() {
                Ok(error) => interrupted = Some(error),
                Err(error) => return Err(error),
            },
        }
    }
    if output.json {
        let objects = stored.into_iter().map(|file| file.json).collect();
        output.document(&one_or_list(objects, sources.len()))?;
    }
    if let Some(interrupted) = interrupted {
        output.progress.clear();
        return Err(interrupted.into());
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Uploads one file for another command, which says on standard output what has become of it.
pub async fn upload(
    client: &Client,
    output: &Output,
    source: &Source,
    fields: Fields<'_>,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<FileObject>> {
    let upload = Upload::new(source, source.name.clone(), None);
    tokio::select! {
        file = put(client, &output.progress, &upload, fields) => file,
        () = interrupt.happened() => Err(upload.interrupted(0).into()),
    }
}

/// What goes with a file.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    pub purpose: &'a str,
    /// None: the server's default models.
    pub models: &'a [String],
    pub expires_after: Option<Duration>,
    /// A JSON object.
    pub metadata: Option<&'a str>,
}

/// Sends the files one after another, and gives what was stored, and the interruption that ended it early.
async fn upload_all(
    client: &Client,
    output: &mut Output,
    sources: &[Source],
    args: &PutArgs,
    metadata: Option<&str>,
    interrupt: &mut Interrupt,
) -> anyhow::Result<(Vec<Answer<FileObject>>, Option<Interrupted>)> {
    let mut stored = Vec::new();
    for (place, source) in sources.iter().enumerate() {
        let title = match sources.len() {
            1 => source.name.clone(),
            count => format!("{} of {count}: {}", place + 1, source.name),
        };
        let upload = Upload::new(source, title, args.idempotency_key.clone());
        let fields = Fields {
            purpose: &args.purpose,
            models: &args.models,
            expires_after: args.expires_after,
            metadata,
        };
        let putting = async {
            let file = put(client, &output.progress, &upload, fields).await?;
            if !output.json {
                output.line(&file.value.id)?;
            }
            Ok(file)
        };
        let result = tokio::select! {
            result = putting => result,
            () = interrupt.happened() => {
                return Ok((stored, Some(upload.interrupted(sources.len() - place - 1))));
            }
        };
        match result {
            Ok(file) => stored.push(file),
            Err(error) if sources.len() == 1 => return Err(error),
            // The id was lost with its reader. What is left is uploaded all the same.
            Err(error) if error.is::<Closed>() => {}
            Err(error) => {
                output.progress.note(&format!("error: `{}`: {error:#}", source.path.display()))
            }
        }
    }
    Ok((stored, None))
}

/// One file on its way.
struct Upload<'a> {
    source: &'a Source,
    /// What the bar says.
    title: String,
    /// The idempotency key.
    key: String,
    /// Whether an earlier try ended without an answer once all was sent.
    was_sent_before: Cell<bool>,
    /// The try that is under way.
    sending: RefCell<Option<Arc<State>>>,
}

impl<'a> Upload<'a> {
    fn new(source: &'a Source, title: String, key: Option<String>) -> Self {
        Self {
            source,
            title,
            // One key over all tries: what an earlier try stored is found again and not stored twice.
            key: key.unwrap_or_else(|| Uuid::new_v4().to_string()),
            was_sent_before: Cell::new(false),
            sending: RefCell::new(None),
        }
    }

    fn is_sent(&self) -> bool {
        self.sending.borrow().as_ref().is_some_and(|state| state.moved() == self.source.bytes)
    }

    /// Whether the server may hold the file without our knowing.
    fn may_be_stored(&self) -> bool {
        self.was_sent_before.get() || self.is_sent()
    }

    /// Notes how a try ended.
    fn ended(&self, failure: Option<&Failure>) {
        if failure.is_some_and(Failure::leaves_it_open) && self.is_sent() {
            self.was_sent_before.set(true);
        }
        self.sending.replace(None);
    }

    /// How to go on where it cannot be known whether the server has the file.
    fn once_more(&self) -> String {
        format!(
            "the server may have stored it; the same command with `--idempotency-key {}` within 24 hours does not store it twice",
            self.key
        )
    }

    fn interrupted(&self, left: usize) -> Interrupted {
        let shown = self.source.path.display();
        let mut text = if self.may_be_stored() {
            format!("`{shown}` was sent, but not answered yet: {}", self.once_more())
        } else {
            format!("`{shown}` was not stored, and nothing of it stays at the server")
        };
        if left > 0 {
            text.push_str(&format!("; {left} more were not sent"));
        }
        Interrupted(text)
    }

    /// A failure with what is to be done about it.
    async fn explained(&self, failure: Failure) -> anyhow::Error {
        let mut advice = None;
        match &failure {
            Failure::Refused(refusal) if refusal.is_ours => {
                if refusal.param.as_deref() == Some("target_model_names") {
                    advice = Some(
                        "`--model` names the models, and `longshore models` lists what there is"
                            .to_owned(),
                    );
                } else if refusal.code.as_deref() == Some("invalid_jsonl")
                    && let Some(number) = faulty_line(&refusal.to_string())
                    && let Some(line) = self.source.line(number).await
                {
                    advice = Some(format!("the line begins with `{}`", plain(&line)));
                }
            }
            Failure::Refused(_)
            | Failure::Lost { .. }
            | Failure::Silent { .. }
            | Failure::NoServer { .. }
            | Failure::Unreachable { .. }
            | Failure::Nonsense { .. } => {
                advice = self.may_be_stored().then(|| self.once_more());
            }
            Failure::Here(_) => {}
        }
        match advice {
            Some(advice) => anyhow::anyhow!("{failure}; {advice}"),
            None => failure.into(),
        }
    }
}

/// The number of the line that a message of the server begins with.
fn faulty_line(message: &str) -> Option<u64> {
    let (number, _) = message.strip_prefix("line ")?.split_once(':')?;
    number.parse().ok()
}

async fn put(
    client: &Client,
    progress: &Progress,
    upload: &Upload<'_>,
    fields: Fields<'_>,
) -> anyhow::Result<Answer<FileObject>> {
    let Upload { source, key, .. } = upload;
    let bar = progress.transfer(&upload.title, Some(source.bytes));
    let attempt = async || -> Result<Answer<FileObject>, Failure> {
        bar.set_position(0);
        let sending = source.open(&bar).await?;
        // The fields stand before the file, so that the server can check its lines as they come.
        let mut form = Form::new().text("purpose", fields.purpose.to_owned());
        for model in fields.models {
            form = form.text("target_model_names", model.clone());
        }
        if let Some(expiry) = fields.expires_after {
            form = form
                .text("expires_after[anchor]", "created_at")
                .text("expires_after[seconds]", expiry.as_secs().to_string());
        }
        if let Some(metadata) = fields.metadata {
            form = form.text("metadata", metadata.to_owned());
        }
        let form = form.part("file", sending.part);
        let request = client.upload(&["files"]).header("idempotency-key", key).multipart(form);
        let state = sending.state;
        upload.sending.replace(Some(Arc::clone(&state)));
        let mut answer = client.transfer(request, || state.moved()).await;
        // A fault of this side looks like a lost connection from the other end of the body.
        if let (Err(_), Some(fault)) = (&answer, state.fault()) {
            answer = Err(Failure::Here(fault));
        }
        upload.ended(answer.as_ref().err());
        answer
    };
    let file = tokio::select! {
        file = client.repeating(REPEATS, progress, attempt) => file,
        never = tell(client, progress, upload, &bar) => match never {},
    };
    bar.finish_and_clear();
    match file {
        Ok(file) => Ok(file),
        Err(failure) => Err(upload.explained(failure).await),
    }
}

/// Says now and then how far an upload is, where no bar can be drawn.
async fn tell(
    client: &Client,
    progress: &Progress,
    upload: &Upload<'_>,
    bar: &ProgressBar,
) -> Infallible {
    if !progress.is_told() {
        return std::future::pending().await;
    }
    let (pause, total) = (client.unit() * TOLD_EVERY, upload.source.bytes);
    let mut before = 0;
    loop {
        tokio::time::sleep(pause).await;
        let position = bar.position();
        // Begun anew, after a failure that was told.
        let moved = position.saturating_sub(before);
        before = position;
        let state = if position >= total {
            "sent, waits for the answer".to_owned()
        } else {
            let rate = moved / u64::from(TOLD_EVERY);
            let left = match (total - position).checked_div(rate) {
                Some(seconds) => {
                    format!(", {} left", humantime::format_duration(Duration::from_secs(seconds)))
                }
                None => String::new(),
            };
            format!("{} of {}, {}/s{left}", bytes(position), bytes(total), bytes(rate))
        };
        progress.note(&format!("{}: {state}", upload.title));
    }
}

/// Brings every file up to its final state, and says whether all of them got to every provider.
async fn wait_for_all(
    client: &Client,
    output: &mut Output,
    stored: &mut [Answer<FileObject>],
    timeout: Duration,
    interrupt: &mut Interrupt,
) -> anyhow::Result<bool> {
    let deadline = watch::deadline(timeout);
    let mut is_good = true;
    for file in stored.iter_mut() {
        let id = file.value.id.clone();
        match wait::until_final(client, &output.progress, &id, deadline, interrupt).await {
            Ok(last) => *file = last,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            // The ids of the files are still to be told.
            Err(error) => {
                output.progress.note(&format!("error: `{}`: {error:#}", file.value.name()));
                is_good = false;
                continue;
            }
        }
        is_good &= file.value.stage() == Stage::Processed;
        wait::verdict(output, &file.value);
    }
    if !output.json {
        let headings: Vec<_> =
            std::iter::once("FILENAME").chain(Mapping::HEADINGS.iter().copied()).collect();
        let mut rows = Vec::new();
        for file in stored.iter() {
            rows.extend(file.value.mappings.iter().map(|mapping| {
                let mut row = mapping.row();
                row.insert(0, cell(file.value.name()));
                row
            }));
        }
        output.table(&headings, rows)?;
    }
    Ok(is_good)
}
