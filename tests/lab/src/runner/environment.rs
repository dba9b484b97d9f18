//! A container's environment, command and arguments, expanded as a kubelet does it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};
use kube::ResourceExt;

use super::fields;
use super::objects::{Objects, Source};

/// Variables by name.
pub(super) type Environment = BTreeMap<String, String>;

/// The container's variables: those every container gets, then `envFrom`, then `env`; later ones win.
pub(super) async fn resolve(
    pod: &Pod,
    container: &Container,
    api_port: u16,
    objects: &mut Objects,
) -> Result<Environment> {
    let mut environment = Environment::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), pod.name_any()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), api_port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), api_port.to_string()),
    ]);
    for from in container.env_from.iter().flatten() {
        let (source, name, optional) = match (&from.secret_ref, &from.config_map_ref) {
            (Some(secret), _) => (Source::Secret, &secret.name, secret.optional),
            (None, Some(map)) => (Source::ConfigMap, &map.name, map.optional),
            (None, None) => continue,
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        match objects.content(source, name).await? {
            Some(content) => {
                for (key, value) in content {
                    environment.insert(format!("{prefix}{key}"), String::from_utf8(value).context("envFrom")?);
                }
            }
            None if optional == Some(true) => {}
            None => bail!("{source:?} {name} not found"),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(pod, container, variable, &environment, objects).await? {
            environment.insert(variable.name.clone(), value);
        }
    }
    Ok(environment)
}

/// One variable's value; `None` if it comes from an optional key that is absent.
async fn value(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    known: &Environment,
    objects: &mut Objects,
) -> Result<Option<String>> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), known)));
    };
    if let Some(field) = &from.field_ref {
        return fields::field(pod, &field.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return fields::resource(container, selector).map(Some);
    }
    let (source, name, key, optional) = key_of(from).with_context(|| {
        format!(
            "variable {}: only fieldRef, resourceFieldRef, secretKeyRef and configMapKeyRef are known",
            variable.name
        )
    })?;
    let found = objects.content(source, name).await?.and_then(|mut content| content.remove(key));
    match found {
        Some(bytes) => Ok(Some(String::from_utf8(bytes).with_context(|| format!("variable {}", variable.name))?)),
        None if optional => Ok(None),
        None => bail!("couldn't find key {key} in {source:?} {name}"),
    }
}

fn key_of(from: &EnvVarSource) -> Option<(Source, &str, &str, bool)> {
    if let Some(secret) = &from.secret_key_ref {
        return Some((Source::Secret, &secret.name, &secret.key, secret.optional.unwrap_or(false)));
    }
    let map = from.config_map_key_ref.as_ref()?;
    Some((Source::ConfigMap, &map.name, &map.key, map.optional.unwrap_or(false)))
}

/// Replaces `$(NAME)` by the variable's value. Unknown names stay as they are; `$$` is a literal `$`.
pub(super) fn expand(text: &str, known: &Environment) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&rest[..name.len() + 3]),
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = &rest[1..];
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_and_unknown_ones_stay() {
        let known = Environment::from([("NAME".into(), "web".into())]);
        assert_eq!(expand("a $(NAME) b", &known), "a web b");
        assert_eq!(expand("$(OTHER) $$(NAME) $5 $(", &known), "$(OTHER) $(NAME) $5 $(");
    }
}
