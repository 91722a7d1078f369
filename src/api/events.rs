//! `GET /v1/events`: an owner's changes of state as they happen, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::Event;
use futures_util::Stream;
use futures_util::stream;
use sea_orm::DbErr;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth;
use super::auth::Authenticated;
use super::error::TooManyRequests;
use super::parameters::Query;
use super::wait;
use crate::app::App;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::events;
use crate::events::Cursor;
use crate::events::Told;
use crate::notices::Listening;
use crate::owners::Scope;

/// How often something is sent when nothing happens: who is between would take silence for the end.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How soon a client is to come again when its connection is lost.
const COME_AGAIN: Duration = Duration::from_secs(3);
/// Events that are read at once from the database.
const PAGE: u64 = 200;
/// How long before its events are pruned a place counts as too old: what is behind it is still there when it is read.
const MARGIN: Duration = Duration::from_mins(10);

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(stream_events))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct After {
    /// An `id` of this stream: what happened behind it comes first. For clients that cannot send `Last-Event-ID`,
    /// which goes before it.
    after: Option<String>,
}

/// Stream events
///
/// Server-sent events: of each, `event` is its type (`file.*`, `batch.*`, `job.*`, `sweep.*`), `data` is what a webhook would be
/// sent, and `id` is the place behind it, which `Last-Event-ID` resumes from, without a gap and without a repetition,
/// for a day. Without a place it begins now. An admin key sees everybody's.
#[utoipa::path(get, path = "/v1/events", operation_id = "stream_events", tag = "Webhooks",
    security(("bearer" = [])),
    params(
        After,
        ("Last-Event-ID" = Option<String>, Header, description = "The last `id` that was received."),
    ),
    responses(
        (status = 200, description = "The stream. It goes on until either side ends it.", body = String,
            content_type = "text/event-stream"),
        (status = 429, response = TooManyRequests),
    ),
)]
async fn stream_events(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
    Query(query): Query<After>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Error> {
    wait::check_room(&app, "come again")?;
    let place = match headers.get("last-event-id") {
        Some(header) => Some(("Last-Event-ID", header.to_str().unwrap_or("?"))),
        None => query.after.as_deref().map(|after| ("after", after)),
    };
    let place = place.filter(|(_, text)| !text.is_empty());
    let scope = caller.scope();
    // Registered first, so that nothing falls between what is read and what is heard.
    let listening = app.notices.listen(&app.db, &scope).await?;
    let tail = events::tail(app.db.read()).await?;
    let (cursor, at) = match place {
        None => (tail, app.clock.now()),
        Some((param, text)) => resume(&app, tail, param, text)?,
    };
    let following = Following {
        app,
        credentials: auth::credentials(&headers),
        checked: Instant::now(),
        scope,
        cursor,
        at,
        listening,
        read: VecDeque::new(),
        is_behind: true,
        has_begun: false,
    };
    let events = stream::unfold(following, |mut following| async move {
        let event = following.next().await?;
        Some((Ok(event), following))
    });
    Ok(Sse::new(events))
}

/// Reads the place that a client goes on from.
fn resume(
    app: &App,
    tail: Cursor,
    param: &'static str,
    text: &str,
) -> Result<(Cursor, Timestamp), Error> {
    let (cursor, at) = Cursor::from_text(text).ok_or_else(|| {
        Error::invalid(
            param,
            format!("`{param}` must be an `id` of this stream, as it was received"),
        )
    })?;
    if app.clock.now().since(at) > events::KEPT.saturating_sub(MARGIN) {
        return Err(Error::Invalid {
            param: Some(param),
            code: Some("cursor_too_old"),
            message: format!(
                "`{param}` is too old: events are kept for a day; begin without it, and look at the lists for what was"
            ),
        });
    }
    // Where all events are pruned, SQLite does not know the end.
    if tail != Cursor::default() && cursor > tail {
        return Err(Error::invalid(
            param,
            format!(
                "`{param}` is not known here: it lies ahead of all events; was the database restored?"
            ),
        ));
    }
    Ok((cursor, at))
}

/// A client, and how far it is.
struct Following {
    app: App,
    credentials: HeaderMap,
    /// When the key was last seen to be good.
    checked: Instant,
    scope: Scope,
    /// Everything before it was sent.
    cursor: Cursor,
    /// When that was so.
    at: Timestamp,
    listening: Listening,
    /// What was read from the database and is to be sent first.
    read: VecDeque<Told>,
    /// There may be more in the database, before what is heard.
    is_behind: bool,
    has_begun: bool,
}

impl Following {
    /// What is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        if !self.has_begun {
            self.has_begun = true;
            // A client that hears nothing before it loses its connection can resume all the same.
            return Some(self.place().retry(COME_AGAIN));
        }
        loop {
            if self.app.notices.is_closing() || !self.may_listen().await {
                return None;
            }
            if let Some(told) = self.read.pop_front() {
                return Some(self.event(&told));
            }
            if self.is_behind {
                if let Err(error) = self.read_on().await {
                    // It comes again, and goes on from where it is.
                    tracing::warn!(error = %error, "ended a stream of events: they cannot be read");
                    return None;
                }
                continue;
            }
            match tokio::time::timeout(HEARTBEAT, self.listening.next()).await {
                Ok(Some(told)) if told.cursor > self.cursor => return Some(self.event(&told)),
                // It was in the database already.
                Ok(Some(_)) => {}
                // It was too slow. What it missed is in the database.
                Ok(None) if !self.app.notices.is_closing() => {
                    let again = self.app.notices.listen(&self.app.db, &self.scope).await;
                    self.listening = again.ok()?;
                    self.is_behind = true;
                }
                Ok(None) => return None,
                Err(_) => {
                    self.at = self.app.clock.now();
                    return Some(self.place().comment(""));
                }
            }
        }
    }

    /// Whether the key, which may be revoked while the stream stands, is still good.
    async fn may_listen(&mut self) -> bool {
        if self.checked.elapsed() < HEARTBEAT {
            return true;
        }
        self.checked = Instant::now();
        match auth::identify(&self.app, &self.credentials).await {
            Ok(caller) => caller.scope() == self.scope,
            Err(Error::Unauthorized(_) | Error::Forbidden(_)) => false,
            // Nobody knows now; it is asked again.
            Err(_) => true,
        }
    }

    async fn read_on(&mut self) -> Result<(), DbErr> {
        let turn = self.app.notices.turn().await;
        let page = events::behind(self.app.db.scan(), &self.scope, self.cursor, PAGE).await?;
        self.is_behind = page.len() as u64 == PAGE;
        let told = events::tell(self.app.db.scan(), page).await?;
        drop(turn);
        self.read.extend(told.into_iter().map(|(_, told)| told));
        Ok(())
    }

    fn event(&mut self, told: &Told) -> Event {
        self.cursor = told.cursor;
        self.at = told.created_at;
        self.place().event(&told.kind).data(&told.json)
    }

    fn place(&self) -> Event {
        Event::default().id(self.cursor.to_text(self.at))
    }
}
