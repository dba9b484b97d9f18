//! Files of plans with nasty names, and how one file differs from another.

use std::collections::BTreeSet;

use hcl_edit::template::Element;

use super::*;
use crate::api::common::Category;
use crate::api::shutdown::ShutdownPolicy;
use crate::plan::{Choices, Named, Placement, PlanInput, make};

/// Names that try to be more than text.
const NASTY: &[&str] = &[
    "\"",
    "web\" { }",
    "a\n}\nresource \"x\" \"y\" {",
    "a\r\n}",
    "${file(\"/etc/passwd\")}",
    "$${file(\"/etc/passwd\")}",
    "$$${x}",
    "%{ if true }x%{ endif }",
    "%%{x",
    "${a} %${b}",
    "%{a} $%{b}",
    "${a}$${b}$$${c}%%%{d}",
    "\\",
    "\\\"${x}",
    "\\n",
    "\\${x}",
    "'",
    "x' or name ne 'y",
    "''",
    "it's ${\"nested\"}",
    "<<EOT\nx\nEOT",
    "/* */ # //",
    "Zürich-データ-🦀",
    "e\u{301}",
    "\u{202e}txet\u{2066}",
    "\u{0}\u{1}\u{7f}\u{85}\u{2028}",
    "\u{feff}",
    " ",
    "$",
    "${",
    "%{",
    "\t",
];

fn machine_named(name: &str) -> crate::api::machine::Machine {
    let xml = "<domain><name>x</name><uuid>u-1</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type machine='pc'>hvm</type></os>
        <devices><disk type='file' device='disk'><driver type='raw'/><source file='/a'/><target dev='vda' bus='virtio'/></disk>
        <disk type='file' device='disk'><driver type='raw'/><source file='/b'/><target dev='vdb' bus='virtio'/></disk>
        <interface type='user'><mac address='52:54:00:00:00:01'/></interface>
        <interface type='user'><mac address='52:54:00:00:00:02'/></interface></devices></domain>";
    let machine = crate::machine::parse(xml, true).expect("valid");
    crate::api::machine::Machine { name: name.into(), ..machine }
}

/// A plan in which everything that has a name bears this one.
fn plan(hostname: &str, name: &str, identifiers: Identifiers) -> Plan {
    let named = || Named { name: name.into(), ext_id: "e".into() };
    let category = Category { key: name.into(), value: name.into() };
    let planned = PlannedCategory { category: category.clone(), ext_id: "k".into() };
    make(&PlanInput {
        machine: &machine_named(name),
        hostname,
        placement: &Placement {
            cluster: named(),
            container: named(),
            subnets: vec![(0, named())],
            categories: vec![planned],
        },
        choices: &Choices { categories: vec![category], project: Some("p".into()), ..Choices::default() },
        path_template: "vms/{hostname}.tf",
        identifiers,
        shutdown: &ShutdownPolicy::default(),
        origin: name,
    })
    .expect("plan")
}

/// Read back by a parser that keeps what is text and what is template apart, as Terraform does. hcl-rs does not: it writes and reads again.
fn read(text: &str) -> hcl_edit::structure::Body {
    text.parse().unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// An attribute as Terraform takes it; what would be evaluated stands between angle brackets.
fn meaning(block: &hcl_edit::structure::Block, name: &str) -> String {
    let template = match &block.body.get_attribute(name).expect("the block has this attribute").value {
        hcl_edit::expr::Expression::String(text) => return text.as_str().to_owned(),
        hcl_edit::expr::Expression::StringTemplate(template) => template,
        other => panic!("{other} is no text"),
    };
    let parts = template.iter().map(|element| match element {
        Element::Literal(text) => text.as_str().to_owned(),
        Element::Interpolation(found) => format!("<{}>", found.expr),
        Element::Directive(_) => "<directive>".into(),
    });
    parts.collect()
}

#[test]
fn hostile_names_stay_text_in_both_conventions() {
    for name in NASTY {
        for (identifiers, blocks) in [(Identifiers::Uuid, 1), (Identifiers::DataSource, 5)] {
            let text = file(&plan("web01", name, identifiers));
            let body = read(&text);
            assert_eq!(body.blocks().count(), blocks, "something was injected:\n{text}");
            let vm = body.blocks().last().expect("the VM");
            assert_eq!(vm.body.attributes().count(), 8, "something was injected:\n{text}");
            let plain = one_line(name);
            let wanted = format!("Moved by Drover from libvirt domain {plain} (u-1) for {plain}");
            assert_eq!(meaning(vm, "description"), wanted, "{text}");
        }
    }
}

#[test]
fn filters_look_for_exactly_the_name() {
    let one = "one(data.nutanix_clusters_v2.web01.cluster_entities).ext_id";
    for name in NASTY {
        let body = read(&file(&plan("web01", name, Identifiers::DataSource)));
        let filters: Vec<String> = body.blocks().take(4).map(|block| meaning(block, "filter")).collect();
        let quoted = format!("'{}'", name.replace('\'', "''"));
        let wanted = [
            format!("name eq {quoted}"),
            format!("name eq {quoted} and clusterExtId eq '<{one}>'"),
            format!("name eq {quoted} and clusterReference eq '<{one}>'"),
            format!("key eq {quoted} and value eq {quoted}"),
        ];
        assert_eq!(filters, wanted);
    }
}

#[test]
fn labels_are_identifiers_and_do_not_collide() {
    let long = format!("{}.x", "a".repeat(78));
    let mut names: BTreeSet<String> = ["web01", "web-01", "web_01", "web.01", "web..01", "01web", "1", "Web01", &long]
        .into_iter()
        .chain(NASTY.iter().copied())
        .map(str::to_owned)
        .collect();
    // What one name becomes may be another one's own name.
    names.extend(names.iter().map(|name| label(name)).collect::<Vec<_>>());
    let labels: BTreeSet<String> = names.iter().map(|name| label(name)).collect();
    assert_eq!(labels.len(), names.len());
    for found in &labels {
        assert!(
            Identifier::new(found.clone()).is_ok() && found.starts_with(|c: char| c.is_ascii_alphabetic()),
            "{found}"
        );
    }
    assert_eq!(label("web01"), "web01", "a name that fits is kept");
    assert_eq!(label("web-01"), "web-01");
}

#[test]
fn categories_whose_names_run_together_are_told_apart() {
    let mut plan = plan("web01", "x", Identifiers::DataSource);
    let category = |key: &str, value: &str| PlannedCategory {
        category: Category { key: key.into(), value: value.into() },
        ext_id: "k".into(),
    };
    plan.categories = vec![category("a_b", "c"), category("a", "b_c"), category("a:b", "c"), category("a", "b:c")];
    let mut labels: Vec<String> =
        Lookup::all(&plan).into_iter().map(|lookup| lookup.kind.to_owned() + &lookup.label).collect();
    let all = labels.len();
    labels.sort();
    labels.dedup();
    assert_eq!(labels.len(), all);
}

/// Hunks between two texts of equally many lines: runs of lines that differ.
fn hunks(before: &str, after: &str) -> usize {
    assert_eq!(before.lines().count(), after.lines().count());
    let differs: Vec<bool> = before.lines().zip(after.lines()).map(|(before, after)| before != after).collect();
    (0..differs.len()).filter(|at| differs[*at] && (*at == 0 || !differs[at - 1])).count()
}

#[test]
fn a_changed_plan_is_a_clean_diff() {
    let base = plan("web01", "web01", Identifiers::Uuid);
    let text = file(&base);
    assert_eq!(file(&base.clone()), text, "the same plan is the same file");
    let changes: [fn(&mut Plan); 9] = [
        |plan| plan.cpu.sockets = 12,
        |plan| plan.memory_bytes = 1 << 40,
        |plan| plan.board = Board::Q35,
        |plan| plan.cluster.ext_id = "another".into(),
        |plan| plan.project = Some("another".into()),
        |plan| plan.categories[0].ext_id = "another".into(),
        |plan| plan.disks[1].size_bytes = 1,
        |plan| plan.nics[1].mac = "52:54:00:00:00:03".into(),
        |plan| plan.nics[0].subnet.ext_id = "another".into(),
    ];
    for change in changes {
        let mut changed = base.clone();
        change(&mut changed);
        // And the digest in the header.
        assert_eq!(hunks(&text, &file(&changed)), 2, "{}", file(&changed));
    }
}

#[test]
fn a_disk_more_is_one_block_more_and_nothing_else() {
    let base = plan("web01", "web01", Identifiers::Uuid);
    let mut more = base.clone();
    more.disks.push(PlannedDisk { size_bytes: 5 });
    let without_header = |plan: &Plan| file(plan).lines().skip(2).map(|line| format!("{line}\n")).collect::<String>();
    let (before, after) = (without_header(&base), without_header(&more));
    let same = before.lines().zip(after.lines()).take_while(|(before, after)| before == after).count();
    let added = after.lines().count() - before.lines().count();
    let rest: Vec<&str> = after.lines().skip(same + added).collect();
    assert_eq!(rest, before.lines().skip(same).collect::<Vec<_>>());
    assert!(added > 0 && same > 0);
}

#[test]
fn an_edit_shows_in_the_file_itself() {
    let text = file(&plan("web01", "web01", Identifiers::Uuid));
    assert!(is_as_written(&text), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    for at in 0..lines.len() {
        let mut edited: Vec<String> = lines.iter().map(ToString::to_string).collect();
        edited[at].push(' ');
        assert!(!is_as_written(&(edited.join("\n") + "\n")), "an edit of line {} does not show", at + 1);
    }
    assert!(!is_as_written(&text.replacen(lines[1], "", 1)) && !is_as_written(HEADER) && !is_as_written(""));
}

#[test]
fn neighbouring_attributes_are_aligned() {
    assert_eq!(align("a {\n  x = 1\n  long = 2\n}\n"), "a {\n  x    = 1\n  long = 2\n}\n");
}
