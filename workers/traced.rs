//! What an attempt is in a trace: a span in the trace of the request, or of the job, that made its job.
//!
//! Not every attempt is one. A watch looks for many runs, and mostly sees nothing new: what it sees of a run goes into
//! the run's own trace (`watch_batch`). And of a job that waits by trying, only the first attempts and the one that ends
//! it are spans, so that no trace grows for ever.

use crate::clock::Clock;
use crate::clock::Timestamp;
use crate::jobs::Ending;
use crate::jobs::Work;
use crate::jobs::claims::Claimed;
use crate::traces::Description;
use crate::traces::Held;
use crate::traces::KeyValue;
use crate::traces::Origin;
use crate::traces::Span;
use crate::traces::SpanKind;
use crate::traces::Traces;

/// Attempts of one job that are spans, whatever comes of them.
const MOST_SPANS: i64 = 32;

/// How an attempt ended, in a word; and what became of its job, if it is known.
pub type Ended = (&'static str, Option<Ending>);

/// The trace of an attempt. What is done in it is in that place.
pub struct Traced {
    span: Span,
    /// When it began, where it is no span unless it ends its job.
    began_quietly_at: Option<Timestamp>,
}

impl Traced {
    pub fn begin(traces: &Traces, clock: &Clock, job: &Claimed) -> Self {
        if job.epoch > MOST_SPANS || job.is_watch() {
            let span = traces.within(|| origin(job));
            return Self { span, began_quietly_at: Some(clock.now()) };
        }
        let resends = u32::try_from(job.attempt - 1).unwrap_or(0);
        let span = traces.begin(resends, || (origin(job), describe(job)));
        Self { span, began_quietly_at: None }
    }

    /// The span of the log.
    pub fn log_span(&self, job: &Claimed) -> tracing::Span {
        let span = tracing::info_span!(
            "attempt",
            job.id = %job.id,
            job.name = %job.kind,
            job.attempt = job.attempt,
            request.id = job.request_id.as_deref().unwrap_or(""),
            owner.id = %job.owner,
            model.name = job.model.as_deref().unwrap_or(""),
            trace_id = tracing::field::Empty,
        );
        if let Some(trace_id) = self.span.trace_id() {
            span.record("trace_id", trace_id);
        }
        span
    }

    pub fn hold<F: Future>(&self, future: F) -> Held<F> {
        self.span.hold(future)
    }

    pub fn end(self, traces: &Traces, job: &Claimed, (outcome, ending): &Ended) {
        let span = match self.began_quietly_at {
            None => self.span,
            Some(_) if matches!(ending, None | Some(Ending::Retry { .. })) => return,
            // The daily end of a watch, where there is another, is no news either.
            Some(_) if job.is_watch() && matches!(ending, Some(Ending::Succeeded)) => return,
            Some(began_at) => traces.begin(0, || {
                let began_at = Some(began_at);
                (origin(job), Description { began_at, ..describe(job) })
            }),
        };
        span.set(|| KeyValue::new("job.outcome", *outcome));
        match ending {
            Some(Ending::Failed(failure)) => span.fail(&failure.code),
            Some(Ending::Retry { failure: Some(failure), .. }) => span.fail(&failure.code),
            Some(Ending::Succeeded | Ending::Cancelled | Ending::Retry { .. }) => {}
            None => span.fail(outcome),
        }
    }
}

fn describe(job: &Claimed) -> Description {
    let mut attributes = vec![
        KeyValue::new("job.id", job.id.to_string()),
        KeyValue::new("job.name", job.kind.clone()),
        KeyValue::new("job.lane", job.lane.clone()),
        KeyValue::new("job.attempt", i64::from(job.attempt)),
        KeyValue::new("job.epoch", job.epoch),
        KeyValue::new("owner.id", job.owner.clone()),
    ];
    let named = [("request.id", &job.request_id), ("model.name", &job.model)];
    attributes.extend(
        named.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value.clone()?))),
    );
    attributes.extend(job.file_id.map(|id| KeyValue::new("file.id", id.to_string())));
    attributes.extend(job.batch_id.map(|id| KeyValue::new("batch.id", id.to_string())));
    Description::new(job.kind.clone(), SpanKind::Consumer, attributes)
}

/// What many jobs come of, as of a sweep its deletes, would be one trace without end: each begins its own.
fn origin(job: &Claimed) -> Origin {
    let origin = Origin::of_text(job.traceparent.as_deref());
    match Work::read(&job.kind, &job.payload) {
        Ok(Work::DeleteFile(payload)) if payload.is_background => origin.consequence(),
        _ => origin,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jobs::Spend;
    use crate::traces::tests::recorded;

    fn job(kind: &str, epoch: i64) -> Claimed {
        Claimed {
            kind: kind.to_owned(),
            epoch,
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            ..Claimed::example()
        }
    }

    fn spans_of(kind: &str, epoch: i64, outcome: &'static str, ending: Option<Ending>) -> usize {
        let (traces, spans) = recorded();
        let job = job(kind, epoch);
        let traced = Traced::begin(&traces, &Clock::default(), &job);
        traced.end(&traces, &job, &(outcome, ending));
        spans.lock().unwrap().len()
    }

    #[test]
    fn of_a_job_that_is_tried_for_ever_the_first_attempts_and_the_last_are_spans() {
        let again = || {
            let (after, spend) = (Duration::ZERO, Spend::Nothing);
            Some(Ending::Retry { after, spend, failure: None })
        };
        assert_eq!(spans_of("upload_file", MOST_SPANS, "retried", again()), 1);
        assert_eq!(spans_of("upload_file", MOST_SPANS + 1, "retried", again()), 0);
        assert_eq!(spans_of("upload_file", MOST_SPANS + 1, "lost", None), 0);
        assert_eq!(spans_of("upload_file", 1000, "succeeded", Some(Ending::Succeeded)), 1);
    }

    #[test]
    fn a_watch_is_a_span_only_where_it_came_to_a_bad_end() {
        assert_eq!(spans_of("watch_batch", 1, "succeeded", Some(Ending::Succeeded)), 0);
        let failure = crate::jobs::Failure::permanent("x", "y");
        assert_eq!(spans_of("watch_batch", 1, "failed", Some(Ending::Failed(failure))), 1);
    }
}
