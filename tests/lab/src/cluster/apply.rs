//! Putting objects into the cluster: server-side apply of YAML, and Drover's resource definitions.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};

/// The field manager of what the lab applies.
pub const FIELD_MANAGER: &str = "drover-lab";

/// Applies every document of `yaml` in order; namespaced objects without a namespace go to `default`. Returns them as the server stored them.
pub(super) async fn apply_yaml(client: &Client, yaml: &str) -> Result<Vec<DynamicObject>> {
    let documents: Vec<Option<DynamicObject>> = serde_saphyr::from_multiple(yaml).context("read the YAML to apply")?;
    let mut kinds = None;
    let mut applied = Vec::new();
    for object in documents.into_iter().flatten() {
        let (resource, capabilities) = resolve(client, &mut kinds, &object).await?;
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client.clone(), &resource),
            Scope::Namespaced => {
                let namespace = object.namespace().unwrap_or_else(|| "default".into());
                Api::namespaced_with(client.clone(), &namespace, &resource)
            }
        };
        let name = object.name_any();
        let stored = api
            .patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object))
            .await
            .with_context(|| format!("apply {} {name}", resource.kind))?;
        applied.push(stored);
    }
    Ok(applied)
}

/// Finds out which resource holds the object's kind. Asks the server again when the kind is unknown: an earlier document may have defined it.
async fn resolve(
    client: &Client,
    kinds: &mut Option<Discovery>,
    object: &DynamicObject,
) -> Result<(ApiResource, ApiCapabilities)> {
    let types = object.types.as_ref().with_context(|| format!("{} has no apiVersion and kind", object.name_any()))?;
    let kind = GroupVersionKind::try_from(types)?;
    for _ in 0..20 {
        if let Some(found) = kinds.as_ref().and_then(|kinds: &Discovery| kinds.resolve_gvk(&kind)) {
            return Ok(found);
        }
        if kinds.is_some() {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        *kinds = Some(Discovery::new(client.clone()).run_aggregated().await.context("discover the server's kinds")?);
    }
    bail!(
        "the API server knows no {}/{} (the definition is missing, or not established yet)",
        types.api_version,
        types.kind
    )
}

/// Applies the definitions and waits until the server serves them.
pub(super) async fn install_crds(client: &Client, crds: &[CustomResourceDefinition]) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds {
        let name = crd.name_any();
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(crd))
            .await
            .with_context(|| format!("apply the definition {name}"))?;
    }
    for crd in crds {
        let name = crd.name_any();
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), established)
            .await
            .with_context(|| format!("{name} was not established within 30 s; see kubectl describe crd {name}"))??;
    }
    Ok(())
}
