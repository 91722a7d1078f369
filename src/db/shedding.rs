//! Requests that wait for the database, bounded: past the bound one is told so at once, since by the time that its
//! turn came its client would have given up. Workers are not bounded by this, but by their slots.

use std::sync::Arc;

use sea_orm::DbErr;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

/// What [`is_overload`] knows it by.
const OVERLOAD: &str = "too many requests wait for the database";

/// Places for what uses the database, or waits for it.
#[derive(Clone, Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
}

impl Gate {
    pub fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)) }
    }

    /// A place, until it is dropped.
    ///
    /// # Errors
    ///
    /// When all are taken.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, DbErr> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            metrics::counter!("longshore_db_shed_total").increment(1);
            DbErr::Custom(OVERLOAD.to_owned())
        })
    }
}

/// Whether the database was not asked, because too many wait for it.
pub fn is_overload(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(text) if text == OVERLOAD)
}
