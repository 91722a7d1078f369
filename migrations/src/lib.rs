//! The schema of Longshore's database.
