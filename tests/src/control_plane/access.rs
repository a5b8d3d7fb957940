//! Who talks to the control plane: clients, tokens, kubeconfigs, and the programs `kubectl`, `helm` and `etcdctl`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{ControlPlane, write_private};
use crate::programs::tool;

/// Somebody whom the API server knows by a bearer token.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user name, as the audit log shows it.
    pub user: String,
    /// The bearer token.
    pub token: String,
    /// The API server's address, such as `https://127.0.0.1:20443`.
    pub server: String,
    /// The certificate of the API server's authority, as PEM text.
    pub authority: String,
}

impl Identity {
    /// The kubeconfig of this identity, with everything inside it: it can be carried to another machine.
    ///
    /// # Errors
    /// When it cannot be written as YAML.
    pub fn kubeconfig(&self) -> Result<String> {
        let Self { user, token, server, authority } = self;
        let authority = ByteString(authority.clone().into_bytes());
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "kubexen",
            "contexts": [{"name": "kubexen", "context": {"cluster": "kubexen", "user": user}}],
            "clusters": [{"name": "kubexen", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": token}}],
        });
        Ok(serde_yaml_ng::to_string(&kubeconfig)?)
    }

    /// Writes the kubeconfig to a file that only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        write_private(path, &self.kubeconfig()?)
    }

    /// The same identity, towards another port of the same address, behind which the API server is too.
    #[must_use]
    pub fn through(mut self, port: u16) -> Self {
        if let Some((address, _)) = self.server.rsplit_once(':') {
            self.server = format!("{address}:{port}");
        }
        self
    }

    /// The same identity, towards the API server's address as seen from `address` in place of 127.0.0.1.
    #[must_use]
    pub fn seen_from(mut self, address: &str) -> Self {
        self.server = self.server.replace("127.0.0.1", address);
        self
    }

    /// A client that acts as this identity.
    ///
    /// It belongs to the runtime that it was made in, and is of no use in another one: each test makes its own.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig()?)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }
}

impl ControlPlane {
    /// The administrator, who may do everything.
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When it cannot be made; it connects only when it is used.
    pub async fn client(&self) -> Result<Client> {
        self.admin.client().await
    }

    /// The identity of a service account, with a token that the API server issues now, for one hour.
    ///
    /// # Errors
    /// When the service account does not exist.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<Identity> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client().await?, namespace);
        let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
        let issued = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("cannot get a token of the service account {namespace}/{name}"))?;
        let token = issued.status.and_then(|status| status.token);
        Ok(Identity {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            token: token.ok_or_else(|| anyhow!("the API server issued no token"))?,
            ..self.admin.clone()
        })
    }

    /// The administrator's kubeconfig, as a file.
    pub fn kubeconfig(&self) -> std::path::PathBuf {
        self.folder().join("admin.kubeconfig")
    }

    /// `kubectl` as the administrator. Its caches stay inside the scratch folder.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn kubectl(&self) -> Result<Command> {
        self.program("kubectl")
    }

    /// `helm` as the administrator. Its caches stay inside the scratch folder.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn helm(&self) -> Result<Command> {
        self.program("helm")
    }

    /// The keys of the pool's etcd that begin with `prefix`, in order.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn pool_keys(&self, prefix: &str) -> Result<Vec<String>> {
        let keys = self.etcdctl(&["get", "--prefix", "--keys-only", prefix]).await?;
        Ok(keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// The value of one key of the pool's etcd; empty if there is no such key.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn pool_value(&self, key: &str) -> Result<String> {
        self.etcdctl(&["get", "--print-value-only", key]).await
    }

    /// Saves a snapshot of the pool's etcd, and says where.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn save_pool_snapshot(&self) -> Result<std::path::PathBuf> {
        let file = self.folder().join("pool.snapshot");
        let endpoints = self.pool_etcd_endpoints();
        let member = endpoints.first().context("the pool's etcd has no member")?;
        let output = Command::new(tool("etcdctl")?)
            .args(["--endpoints", member, "snapshot", "save"])
            .arg(&file)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run etcdctl")?;
        ensure!(output.status.success(), "etcdctl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(file)
    }

    /// How long the lease that a key of the pool's etcd is attached to was granted for; none if there is no such key, or no
    /// lease on it.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn pool_lease(&self, key: &str) -> Result<Option<Duration>> {
        let found = self.etcdctl(&["get", "--write-out=json", key]).await?;
        let found: Value = serde_json::from_str(&found)?;
        let Some(lease) = found["kvs"][0]["lease"].as_u64() else { return Ok(None) };
        let lease = self.etcdctl(&["lease", "timetolive", "--write-out=json", &format!("{lease:x}")]).await?;
        let lease: Value = serde_json::from_str(&lease)?;
        Ok(lease["granted-ttl"].as_u64().map(Duration::from_secs))
    }

    /// The member of the pool's etcd that leads, counted from 0.
    ///
    /// # Errors
    /// When a member does not answer, or none of them leads.
    pub async fn pool_etcd_leader(&self) -> Result<usize> {
        let said: Value =
            serde_json::from_str(&self.etcdctl(&["endpoint", "status", "--write-out=json"]).await?)?;
        let statuses = said.as_array().context("no list of members")?;
        let leads = |status: &Value| status["Status"]["leader"] == status["Status"]["header"]["member_id"];
        let leader = statuses.iter().find(|status| leads(status)).context("no member leads")?;
        let endpoint = leader["Endpoint"].as_str().context("a member without an endpoint")?;
        let endpoints = self.pool_etcd_endpoints();
        endpoints.iter().position(|other| other == endpoint).context("an unknown member leads")
    }

    /// What `etcdctl` prints when it is run against the pool's etcd, all members of it.
    ///
    /// # Errors
    /// With its own words.
    pub async fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(tool("etcdctl")?)
            .args(["--endpoints", &self.pool_etcd_endpoints().join(",")])
            .args(arguments)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run etcdctl")?;
        ensure!(output.status.success(), "etcdctl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn program(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(tool(name)?);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.folder()).kill_on_drop(true);
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env_remove(variable);
        }
        Ok(command)
    }
}
