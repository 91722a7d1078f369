//! Keyset pages: lists that neither skip nor repeat while rows come and go.

use sea_orm::Value;
use uuid::Uuid;

/// The part of a list that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<Id> {
    /// The last element of the page before; it need not exist any more.
    pub after: Option<Id>,
    pub limit: u32,
    pub order: Order,
}

/// By creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// A list query in the making.
pub struct Query {
    sql: String,
    values: Vec<Value>,
}

impl Query {
    pub fn new(select: &str) -> Self {
        Self { sql: select.to_owned(), values: Vec::new() }
    }

    /// Narrows by `{column_and_operator} value`.
    pub fn filter(&mut self, column_and_operator: &str, value: impl Into<Value>) {
        let word = if self.values.is_empty() { "WHERE" } else { "AND" };
        self.values.push(value.into());
        self.sql.push_str(&format!(" {word} {column_and_operator} ${}", self.values.len()));
    }

    /// Narrows by a condition without a value. A filter with a value must have come before it.
    pub fn condition(&mut self, condition: &str) {
        self.sql.push_str(&format!(" AND {condition}"));
    }

    /// Closes a parenthesis that the filter before opened.
    pub fn close(&mut self) {
        self.sql.push(')');
    }

    /// The query for all rows in the order of `key`.
    pub fn ordered(mut self, key: &str) -> (String, Vec<Value>) {
        self.sql.push_str(&format!(" ORDER BY {key}"));
        (self.sql, self.values)
    }

    /// The query for one page by `key`, a UUIDv7 column, with one row more than the page holds.
    pub fn finish<Id>(
        mut self,
        key: &str,
        after: Option<Uuid>,
        page: &Page<Id>,
    ) -> (String, Vec<Value>) {
        let (operator, order) = match page.order {
            Order::Ascending => (">", "ASC"),
            Order::Descending => ("<", "DESC"),
        };
        if let Some(after) = after {
            self.filter(&format!("{key} {operator}"), after);
        }
        self.sql.push_str(&format!(" ORDER BY {key} {order} LIMIT {}", page.limit + 1));
        (self.sql, self.values)
    }
}
