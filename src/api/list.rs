//! Lists: their parameters and their envelope, as OpenAI has them.

use serde::Deserialize;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::description::described;
use super::description::words;
use crate::error::Error;
use crate::page::Order;
use crate::page::Page;

/// `after`, `limit` and `order`, as they were sent. How long a page may be each list says itself.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParameters {
    /// The `last_id` of the page before. It may name a thing that was deleted since.
    after: Option<String>,
    #[param(ignore)]
    limit: Option<String>,
    #[param(schema_with = orders, required = false)]
    order: Option<String>,
}

fn orders() -> Object {
    let text = "By creation: the newest first (`desc`, the default), or the oldest.";
    described(words(["asc", "desc"]), text)
}

/// How long a page of this list may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub default: u32,
    pub most: u32,
}

impl ListParameters {
    /// The text of `after`, if there is one.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref().filter(|after| !after.is_empty())
    }

    /// The page that is asked for, behind `after` as the caller resolved it.
    ///
    /// # Errors
    ///
    /// When `limit` or `order` is out of range.
    pub fn page<Id>(&self, after: Option<Id>, limits: Limits) -> Result<Page<Id>, Error> {
        let limit = match self.limit.as_deref() {
            None | Some("") => limits.default,
            Some(text) => {
                text.parse().ok().filter(|limit| (1..=limits.most).contains(limit)).ok_or_else(
                    || {
                        Error::invalid(
                            "limit",
                            format!("`limit` must be a whole number from 1 to {}", limits.most),
                        )
                    },
                )?
            }
        };
        let order = match self.order.as_deref() {
            None | Some("" | "desc") => Order::Descending,
            Some("asc") => Order::Ascending,
            Some(_) => return Err(Error::invalid("order", "`order` must be `asc` or `desc`")),
        };
        Ok(Page { after, limit, order })
    }
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    #[schema(schema_with = is_list)]
    object: &'static str,
    data: Vec<T>,
    #[schema(required = true)]
    first_id: Option<String>,
    /// What to send as `after` for the next page.
    #[schema(required = true)]
    last_id: Option<String>,
    has_more: bool,
}

fn is_list() -> Object {
    words(["list"])
}

impl<T> List<T> {
    /// From what a store answered: one element more than the page means that there is another page.
    pub fn new<Id>(mut data: Vec<T>, page: &Page<Id>, id: impl Fn(&T) -> String) -> Self {
        let limit = page.limit as usize;
        let has_more = data.len() > limit;
        data.truncate(limit);
        Self {
            object: "list",
            first_id: data.first().map(&id),
            last_id: data.last().map(&id),
            data,
            has_more,
        }
    }

    /// A list that is always whole.
    pub fn whole(data: Vec<T>, id: impl Fn(&T) -> String) -> Self {
        Self {
            object: "list",
            first_id: data.first().map(&id),
            last_id: data.last().map(&id),
            data,
            has_more: false,
        }
    }
}
