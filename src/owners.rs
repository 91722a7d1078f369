//! Who asks, and what that lets them see.

/// The owner that an admin key acts as when it names nobody.
pub const ADMIN: &str = "admin";

/// Who a request comes from, as its key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose things are made and listed.
    pub owner: String,
    /// An admin that acts for nobody in particular: sees and touches everything.
    pub is_admin: bool,
}

impl Caller {
    pub fn may_touch(&self, owner: &str) -> bool {
        self.is_admin || self.owner == owner
    }

    /// What this caller's lists are limited to.
    pub fn scope(&self) -> Scope {
        if self.is_admin { Scope::Everything } else { Scope::Owner(self.owner.clone()) }
    }
}

/// What a query is limited to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Everything,
    Owner(String),
}
