//! Builds the lab's tools if need be and prints where they are, one `NAME=path` a line.

use drover_lab::tools::Tools;

fn main() -> anyhow::Result<()> {
    let tools = Tools::ready()?;
    for (name, path) in [
        ("ETCD", tools.etcd),
        ("KUBE_APISERVER", tools.kube_apiserver),
        ("KUBE_CONTROLLER_MANAGER", tools.kube_controller_manager),
        ("KUBECTL", tools.kubectl),
        ("TERRAFORM", tools.terraform),
        ("TF_CLI_CONFIG_FILE", tools.terraform_cli_config),
    ] {
        println!("{name}={}", path.display());
    }
    Ok(())
}
