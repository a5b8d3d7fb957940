//! Connections to the API server.

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::Path, time::Duration};

/// Why no connection could be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("The kubeconfig cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a service account was found.
    #[error("Neither a kubeconfig nor a service account was found")]
    Inferred(#[from] kube::config::InferConfigError),
    /// The client cannot be built from the configuration.
    #[error("The client cannot be built")]
    Client(#[from] kube::Error),
}

/// A client from this kubeconfig file, or, without one, from the environment (`KUBECONFIG`, the pod's service
/// account).
///
/// Requests are not repeated by the transport: who reconciles tries again anyway, after looking. Every request has
/// a limit of its own at its place of call.
///
/// # Errors
/// See [`ConnectError`].
pub async fn client(kubeconfig: Option<&Path>, user_agent: &str) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default())
                .await?
        }
        None => Config::infer().await?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    config.default_retry = false;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_str(user_agent).unwrap_or_else(|_| http::HeaderValue::from_static("kubexen")),
    ));
    Ok(Client::try_from(config)?)
}
