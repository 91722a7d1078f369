//! Batches: how they go, what they come to, and the API in OpenAI's shapes.

mod answers;
pub(super) mod api;
mod batch;
mod input;
mod life;
mod object;
mod output;
mod planted;
mod settings;
mod shelf;
mod state;

pub(super) use self::batch::Batch;
pub(super) use self::batch::Given;
pub(super) use self::batch::NewBatch;
pub(super) use self::batch::Next;
pub(super) use self::input::Input;
pub(super) use self::life::follow;
pub use self::object::BatchCounts;
pub use self::object::BatchError;
pub use self::object::BatchErrors;
pub use self::object::BatchUsage;
pub use self::object::InputTokens;
pub use self::object::OutputTokens;
pub use self::object::StoredBatch;
pub(super) use self::output::Ending;
pub(super) use self::output::Results;
pub use self::planted::PlantedBatch;
pub use self::settings::BatchEnd;
pub use self::settings::BatchFile;
pub use self::settings::BatchSettings;
pub use self::settings::Oddity;
pub use self::settings::OverLimit;
pub(super) use self::shelf::BatchPage;
pub(super) use self::shelf::Batches;
pub use self::state::BatchState;
