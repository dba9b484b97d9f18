//! The downward API: what a container may be told about its own pod.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use kube::ResourceExt;

use super::POD_IP;

/// The value of a `fieldRef` path. Unknown paths are refused.
pub(super) fn field(pod: &Pod, path: &str) -> Result<String> {
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => lines(pod.labels()),
        "metadata.annotations" => lines(pod.annotations()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => POD_IP.into(),
        _ => {
            let (map, key) = path
                .strip_suffix("']")
                .and_then(|path| path.split_once("['"))
                .with_context(|| format!("fieldPath {path} is not one the runner knows"))?;
            match map {
                "metadata.labels" => pod.labels().get(key).cloned().unwrap_or_default(),
                "metadata.annotations" => pod.annotations().get(key).cloned().unwrap_or_default(),
                _ => bail!("fieldPath {path} is not one the runner knows"),
            }
        }
    })
}

fn lines(map: &std::collections::BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}\n")).collect()
}

/// The value of a `resourceFieldRef`, divided by its divisor and rounded up. The container must state the resource: there is no node to fall back on.
pub(super) fn resource(container: &Container, selector: &ResourceFieldSelector) -> Result<String> {
    let stated = container.resources.as_ref().and_then(|resources| {
        let (side, name) = selector.resource.split_once('.')?;
        let amounts = if side == "limits" { resources.limits.as_ref()? } else { resources.requests.as_ref()? };
        amounts.get(name).cloned()
    });
    let stated = stated.with_context(|| format!("container {} states no {}", container.name, selector.resource))?;
    let divisor = selector.divisor.as_ref().map(|d| quantity(&d.0)).transpose()?.filter(|d| *d > 0.0).unwrap_or(1.0);
    Ok(format!("{:.0}", (quantity(&stated.0)? / divisor).ceil()))
}

/// A Kubernetes quantity such as `250m`, `2`, `512Mi` or `1G` as a number.
fn quantity(text: &str) -> Result<f64> {
    const UNITS: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("m", 0.001),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
    ];
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))
        .unwrap_or((text, 1.0));
    Ok(number.parse::<f64>().with_context(|| format!("quantity {text}"))? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() -> Result<()> {
        for (text, value) in [("2", 2.0), ("250m", 0.25), ("512Mi", 536_870_912.0), ("1G", 1e9)] {
            assert!((quantity(text)? - value).abs() < 1e-9, "{text}");
        }
        assert!(quantity("much").is_err());
        Ok(())
    }
}
