//! Where orders come from and reports go: a file, or a `BlockCopy` in Kubernetes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use kube::api::{Api, PostParams};
use serde::de::DeserializeOwned;

use crate::api::{BlockCopy, BlockCopySpec, BlockCopyStatus};

/// Why an order could not be read or a report not be written. In either case nothing has been done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}")]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} does not have the expected form")]
    Form { path: PathBuf, source: serde_json::Error },
    #[error("{doing} BlockCopy {name}")]
    Kubernetes { doing: &'static str, name: String, source: Box<kube::Error> },
    #[error("a report for BlockCopy {name} before it was ever read")]
    NotRead { name: String },
}

/// An order with the newest report to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub spec: BlockCopySpec,
    pub status: BlockCopyStatus,
    pub generation: Option<i64>,
}

/// A source of orders.
pub trait Orders: Send {
    /// The order as it is now.
    fn read(&mut self) -> BoxFuture<'_, Result<Order, Error>>;
    /// Makes `status` the report, unless somebody changed order or report since they were read. Durable when it returns.
    fn record<'a>(&'a mut self, status: &'a BlockCopyStatus) -> BoxFuture<'a, Result<(), Error>>;
}

/// Order and report as JSON files: a `BlockCopySpec` and a `BlockCopyStatus`.
pub struct Files {
    pub order: PathBuf,
    pub status: PathBuf,
}

impl Orders for Files {
    fn read(&mut self) -> BoxFuture<'_, Result<Order, Error>> {
        Box::pin(async {
            let spec = load(&self.order)?;
            let status = if self.status.exists() { load(&self.status)? } else { BlockCopyStatus::default() };
            Ok(Order { spec, status, generation: None })
        })
    }

    fn record<'a>(&'a mut self, status: &'a BlockCopyStatus) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { store(&self.status, status) })
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(|source| Error::File { doing: "reading", path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Form { path: path.into(), source })
}

/// Replaces the file in one step, so that a reader sees the old or the new report.
fn store(path: &Path, status: &BlockCopyStatus) -> Result<(), Error> {
    let failed = |source| Error::File { doing: "writing", path: path.into(), source };
    let bytes = serde_json::to_vec_pretty(status).map_err(|source| Error::Form { path: path.into(), source })?;
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}

/// A `BlockCopy` object. A report carries the resource version that the order was read with: a lost race is a conflict.
pub struct Kubernetes {
    api: Api<BlockCopy>,
    name: String,
    object: Option<BlockCopy>,
}

impl Kubernetes {
    /// Speaks to the API server that the pod's service account belongs to.
    pub async fn connect(namespace: &str, name: &str) -> Result<Self, Error> {
        let failed =
            |source| Error::Kubernetes { doing: "connecting for", name: name.into(), source: Box::new(source) };
        let client = kube::Client::try_default().await.map_err(failed)?;
        Ok(Self { api: Api::namespaced(client, namespace), name: name.into(), object: None })
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(kube::Error) -> Error + use<> {
        let name = self.name.clone();
        move |source| Error::Kubernetes { doing, name, source: Box::new(source) }
    }
}

impl Orders for Kubernetes {
    fn read(&mut self) -> BoxFuture<'_, Result<Order, Error>> {
        Box::pin(async {
            let object = self.api.get(&self.name).await.map_err(self.failed("reading"))?;
            let order = Order {
                spec: object.spec.clone(),
                status: object.status.clone().unwrap_or_default(),
                generation: object.metadata.generation,
            };
            self.object = Some(object);
            Ok(order)
        })
    }

    fn record<'a>(&'a mut self, status: &'a BlockCopyStatus) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async {
            let mut object = self.object.clone().ok_or_else(|| Error::NotRead { name: self.name.clone() })?;
            object.status = Some(status.clone());
            let replaced = self.api.replace_status(&self.name, &PostParams::default(), &object).await;
            self.object = Some(replaced.map_err(self.failed("reporting to"))?);
            Ok(())
        })
    }
}
