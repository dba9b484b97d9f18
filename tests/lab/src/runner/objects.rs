//! Secrets, ConfigMaps and tokens that a pod's containers are given.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};

/// How long a read may take before what was read earlier is used instead.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// Keys and contents of a Secret or ConfigMap.
pub(super) type Content = BTreeMap<String, Vec<u8>>;

/// Which object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Secret,
    ConfigMap,
}

/// Reads objects of one namespace. While the API server does not answer it gives what it read before, so that containers restart all the same.
pub(super) struct Objects {
    client: Client,
    namespace: String,
    seen: BTreeMap<(Source, String), Content>,
}

impl Objects {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.into(), seen: BTreeMap::new() }
    }

    /// The object's content; `None` if it does not exist.
    pub(super) async fn content(&mut self, source: Source, name: &str) -> Result<Option<Content>> {
        let read = tokio::time::timeout(READ_LIMIT, self.read(source, name)).await;
        let key = (source, name.to_owned());
        match read {
            Ok(Ok(Some(content))) => {
                self.seen.insert(key, content.clone());
                Ok(Some(content))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(_)) | Err(_) if self.seen.contains_key(&key) => Ok(self.seen.get(&key).cloned()),
            Ok(Err(error)) => Err(error).with_context(|| format!("read {source:?} {}/{name}", self.namespace)),
            Err(_) => bail!("read {source:?} {}/{name}: no answer within {READ_LIMIT:?}", self.namespace),
        }
    }

    async fn read(&self, source: Source, name: &str) -> Result<Option<Content>> {
        match source {
            Source::Secret => {
                let secret = Api::<Secret>::namespaced(self.client.clone(), &self.namespace).get_opt(name).await?;
                Ok(secret.map(|s| s.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect()))
            }
            Source::ConfigMap => {
                let map = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace).get_opt(name).await?;
                Ok(map.map(|m| {
                    let text = m.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
                    text.chain(m.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)))
                        .collect()
                }))
            }
        }
    }

    /// A token of the pod's service account, bound to the pod, from the TokenRequest API.
    pub(super) async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: Option<i64>) -> Result<String> {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.to_owned()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name_any()),
                    uid: pod.uid(),
                }),
                expiration_seconds: seconds,
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("request a token of service account {}/{account}", self.namespace))?;
        let token = answer.status.and_then(|status| status.token);
        token.context("the API server answered a token request without a token")
    }
}
