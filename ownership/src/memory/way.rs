//! What lies between a client and the store in memory, as a seam.

use async_trait::async_trait;

/// What the requests of one client pass.
#[async_trait]
pub trait Way: Send + Sync + std::fmt::Debug {
    /// Passed by each request before it reaches the store.
    async fn there(&self);

    /// Passed by each answer before the client has it.
    async fn back(&self);
}
