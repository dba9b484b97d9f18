//! The lab: everything a migration needs, on one machine, without a data centre.
//!
//! Real: kube-apiserver, etcd and controller-manager ([`cluster`]), libvirt and QEMU guests ([`libvirt`], [`guest`]), NFS-Ganesha ([`nfs`]),
//! git over https and ssh ([`git`], [`ssh`]), Terraform's language and engine ([`tools`], [`terraform`], [`pipeline`]). Simulated: Prism
//! ([`prism`]), GitLab ([`gitlab`]) and the kubelet ([`runner`]).
//! Several labs can run beside each other: each has its own directory, ports and libvirt instance.

pub mod cluster;
pub mod git;
pub mod gitlab;
pub mod guest;
mod https;
pub mod hypervisor;
pub mod lab;
pub mod libvirt;
pub mod network;
pub mod nfs;
pub mod nfs_proxy;
pub mod pipeline;
pub mod prism;
pub mod process;
pub mod runner;
pub mod soak;
pub mod ssh;
pub mod terraform;
pub mod throttle;
pub mod tools;
pub mod watch;
