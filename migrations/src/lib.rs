//! The schema of Longshore's database, for SQLite and PostgreSQL alike.
//!
//! Every migration is one SQL text in the common part of both dialects; what differs is a
//! placeholder (see [`dialect`]). Times are UTC, in milliseconds since the Unix epoch.

pub use sea_orm_migration::prelude::*;

pub mod dialect;
mod m20261123_000001_create_installation;
mod m20261123_000002_create_api_keys;
mod m20261123_000003_create_files;
mod m20261123_000004_create_mappings;
mod m20261123_000005_create_jobs;
mod m20261123_000006_create_lanes;
mod m20261123_000007_create_events;
mod m20261123_000008_create_idempotency_keys;
mod m20261127_000009_create_deletions;
mod m20261127_000010_create_sweeps;
mod m20261127_000011_create_reconciliations;
mod m20261127_000012_create_batches;
mod m20261127_000013_create_provider_events;
mod m20261127_000014_create_webhook_endpoints;
mod m20261127_000015_add_deliveries_to_jobs;
mod m20261127_000016_index_events_by_owner;
mod m20261127_000017_create_workers;
mod m20261127_000018_add_traceparent_to_jobs;
mod m20261127_000019_index_what_waits_by_lane;
mod m20261127_000020_drop_what_is_due_anywhere;

/// The list of migrations, in the order in which they are applied.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_create_installation::Migration),
            Box::new(m20261123_000002_create_api_keys::Migration),
            Box::new(m20261123_000003_create_files::Migration),
            Box::new(m20261123_000004_create_mappings::Migration),
            Box::new(m20261123_000005_create_jobs::Migration),
            Box::new(m20261123_000006_create_lanes::Migration),
            Box::new(m20261123_000007_create_events::Migration),
            Box::new(m20261123_000008_create_idempotency_keys::Migration),
            Box::new(m20261127_000009_create_deletions::Migration),
            Box::new(m20261127_000010_create_sweeps::Migration),
            Box::new(m20261127_000011_create_reconciliations::Migration),
            Box::new(m20261127_000012_create_batches::Migration),
            Box::new(m20261127_000013_create_provider_events::Migration),
            Box::new(m20261127_000014_create_webhook_endpoints::Migration),
            Box::new(m20261127_000015_add_deliveries_to_jobs::Migration),
            Box::new(m20261127_000016_index_events_by_owner::Migration),
            Box::new(m20261127_000017_create_workers::Migration),
            Box::new(m20261127_000018_add_traceparent_to_jobs::Migration),
            Box::new(m20261127_000019_index_what_waits_by_lane::Migration),
            Box::new(m20261127_000020_drop_what_is_due_anywhere::Migration),
        ]
    }
}
