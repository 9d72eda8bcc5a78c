//! Which module of a crate may use which: no circles anywhere, and in `machine` the layers of docs/ARCHITECTURE.md.
//!
//! Modules are files; what a file uses is read from its `use` items and its paths (`crate::`, `self::`, `super::`, or a module of its own).
//! A folder's head and what is below it are one room: arrows between them do not count, those between its other files do.
//! Modules for tests only are left out.

use std::collections::{BTreeMap, BTreeSet};

use super::rust_text::code_only;
use super::{Finding, Tree};

/// The crate with layers.
const LAYERED: &str = "hypervisor/machine/src/";

/// Its layers, from the bottom up: each may use itself and those before it.
const LAYERS: &[&str] = &[
    "host",
    "arch",
    "vmx",
    "objects",
    "dispatch",
    "lifecycle",
    "run",
    "control",
    "boot",
    "main",
];

/// The path of a module inside its crate; that of the crate's root is empty.
type Module = Vec<String>;

/// The modules of a crate, each with its file, and which others it uses where.
#[derive(Debug, Default)]
struct Graph {
    files: BTreeMap<Module, String>,
    /// From, to: the first line on which it stands.
    arrows: BTreeMap<(Module, Module), usize>,
}

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut roots = BTreeSet::new();
    for (path, _) in tree.ending(".rs") {
        if let Some(end) = path.find("/src/") {
            roots.insert(&path[..end + "/src/".len()]);
        }
    }
    let mut findings = Vec::new();
    for root in roots {
        let graph = Graph::of(tree, root);
        if root == LAYERED {
            findings.extend(graph.up_arrows());
        }
        findings.extend(graph.circles());
    }
    findings
}

impl Graph {
    fn of(tree: &Tree, root: &str) -> Self {
        let mut sources = BTreeMap::new();
        for (path, text) in tree.ending(".rs") {
            if let Some(inside) = path.strip_prefix(root) {
                sources.insert(module_of(inside), (path, code_only(text)));
            }
        }
        let for_tests: Vec<Module> = sources
            .iter()
            .flat_map(|(module, (_, code))| {
                test_modules(code).into_iter().map(|name| {
                    let mut path = module.clone();
                    path.push(name.to_owned());
                    path
                })
            })
            .collect();
        sources.retain(|module, _| !for_tests.iter().any(|test| module.starts_with(test)));
        let mut graph = Graph {
            files: sources
                .iter()
                .map(|(module, (path, _))| (module.clone(), (*path).to_owned()))
                .collect(),
            arrows: BTreeMap::new(),
        };
        for (module, (_, code)) in &sources {
            for (line, path) in paths(without_inline_tests(code)) {
                if let Some(target) = graph.resolve(module, &path)
                    && !is_one_room(module, &target)
                {
                    let arrow = (module.clone(), target);
                    graph.arrows.entry(arrow).or_insert(line);
                }
            }
        }
        graph
    }

    /// The module that a path in `from` names, or is inside of.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Module::new(),
            "self" => from.clone(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            first => {
                let mut own = from.clone();
                own.push(first.to_owned());
                if !self.files.contains_key(&own) {
                    return None;
                }
                own
            }
        };
        for name in &path[1..] {
            if name == "super" {
                at.pop()?;
                continue;
            }
            at.push(name.clone());
            if !self.files.contains_key(&at) {
                at.pop();
                break;
            }
        }
        Some(at)
    }

    fn up_arrows(&self) -> Vec<Finding> {
        let place = |module: &Module| {
            let layer = module.first()?;
            LAYERS.iter().position(|name| name == layer)
        };
        let mut findings = Vec::new();
        for (module, file) in &self.files {
            if !module.is_empty() && place(module).is_none() {
                let message = "no layer: say in xtask/src/tidy/modules.rs where it belongs";
                findings.push(Finding::new(file, 0, message));
            }
        }
        for ((from, to), line) in &self.arrows {
            if let (Some(lower), Some(upper)) = (place(from), place(to))
                && lower < upper
            {
                let message = format!(
                    "{} must not use {}: the layer is above it; let a value go up, or a table of functions come down at boot",
                    from.join("::"),
                    to.join("::")
                );
                findings.push(Finding::new(&self.files[from], *line, message));
            }
        }
        findings
    }

    fn circles(&self) -> Vec<Finding> {
        self.components()
            .into_iter()
            .map(|circle| {
                let arrows: Vec<String> = self
                    .arrows
                    .keys()
                    .filter(|(from, to)| circle.contains(from) && circle.contains(to))
                    .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
                    .collect();
                let first = circle.first().and_then(|first| self.files.get(first));
                let message = format!("modules use each other in a circle: {}", arrows.join(", "));
                Finding::new(first.map_or("", String::as_str), 0, message)
            })
            .collect()
    }

    /// The sets of modules that reach each other.
    fn components(&self) -> Vec<BTreeSet<Module>> {
        let reach: BTreeMap<&Module, BTreeSet<&Module>> = self
            .files
            .keys()
            .map(|start| (start, self.reachable(start)))
            .collect();
        let mut left: BTreeSet<&Module> = self.files.keys().collect();
        let mut found = Vec::new();
        while let Some(start) = left.pop_first() {
            let circle: BTreeSet<Module> = reach[start]
                .iter()
                .filter(|other| reach[*other].contains(start))
                .map(|module| (*module).clone())
                .collect();
            left.retain(|module| !circle.contains(*module));
            if circle.len() > 1 {
                found.push(circle);
            }
        }
        found
    }

    fn reachable<'a>(&'a self, start: &'a Module) -> BTreeSet<&'a Module> {
        let mut seen = BTreeSet::new();
        let mut open = vec![start];
        while let Some(module) = open.pop() {
            for (from, to) in self.arrows.keys() {
                if from == module && seen.insert(to) {
                    open.push(to);
                }
            }
        }
        seen
    }
}

/// The module of a file, by its path below `src`.
fn module_of(inside: &str) -> Module {
    let mut parts: Module = inside
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if parts == ["lib"] || parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Whether one is the other's folder.
fn is_one_room(a: &Module, b: &Module) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// The names of files that are modules for tests only.
fn test_modules(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let rest = code[at + "#[cfg(test)]".len()..].trim_start();
        let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
        let rest = rest.strip_prefix("pub ").unwrap_or(rest);
        if let Some(name) = rest.strip_prefix("mod ")
            && let Some(end) = name.find([';', '{'])
        {
            names.push(name[..end].trim());
        }
    }
    names
}

/// The code before the module with the tests, which stands last.
fn without_inline_tests(code: &str) -> &str {
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let rest = code[at + "#[cfg(test)]".len()..].trim_start();
        if rest.starts_with("mod ") && rest.find('{') < rest.find(';') {
            return &code[..at];
        }
    }
    code
}

/// The paths in a piece of code, `use` items taken apart, each with its line, from 1.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut tokens = Tokens { code, at: 0 };
    let mut previous = "";
    while let Some(token) = tokens.next() {
        if token == "use" && previous != "r#" {
            let line = tokens.line();
            let mut all = Vec::new();
            use_tree(&mut tokens, &[], &mut all);
            found.extend(all.into_iter().map(|path| (line, path)));
        } else if is_name(token) && previous != "::" && tokens.peek() == Some("::") {
            let line = tokens.line();
            let mut path = vec![token.to_owned()];
            while tokens.peek() == Some("::") {
                tokens.next();
                match tokens.peek() {
                    Some(name) if is_name(name) => path.push(name.to_owned()),
                    _ => break,
                }
                tokens.next();
            }
            found.push((line, path));
            previous = "";
            continue;
        }
        previous = token;
    }
    found
}

/// Reads what stands after `use`, or between braces in it.
fn use_tree(tokens: &mut Tokens<'_>, before: &[String], all: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    while let Some(token) = tokens.next() {
        match token {
            "{" => {
                while !matches!(tokens.peek(), None | Some("}")) {
                    use_tree(tokens, &path, all);
                }
                tokens.next();
                path.clear();
            }
            "as" => {
                tokens.next();
            }
            "," | ";" => break,
            "::" | "*" => {}
            name if name == "self" && !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        if tokens.peek() == Some("}") {
            break;
        }
    }
    if !path.is_empty() {
        all.push(path);
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::`, and single signs.
struct Tokens<'a> {
    code: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.code[self.at..].trim_start();
        let start = self.code.len() - rest.len();
        let first = rest.chars().next()?;
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        self.at = start + length;
        Some(&self.code[start..start + length])
    }

    fn peek(&self) -> Option<&'a str> {
        Tokens { ..*self }.next()
    }

    fn line(&self) -> usize {
        self.code[..self.at].matches('\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    fn messages(files: &[(&str, &str)]) -> Vec<String> {
        check(&tree(files))
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn an_arrow_up_in_machine_is_found_where_it_stands() {
        let files = [
            (
                "hypervisor/machine/src/lib.rs",
                "pub mod host; pub mod run; pub mod vmx;",
            ),
            ("hypervisor/machine/src/host.rs", "pub mod cpu;"),
            (
                "hypervisor/machine/src/host/cpu.rs",
                "// crate::run is no arrow here\nfn f() {\n    crate::run::timers();\n}",
            ),
            (
                "hypervisor/machine/src/vmx.rs",
                "use crate::{host::cpu, run as above};",
            ),
            ("hypervisor/machine/src/run.rs", ""),
        ];
        assert_eq!(
            places(&check(&tree(&files))),
            [
                "hypervisor/machine/src/host/cpu.rs:3",
                "hypervisor/machine/src/vmx.rs:1"
            ]
        );
    }

    #[test]
    fn a_module_of_machine_without_a_layer_is_found() {
        let found = messages(&[
            ("hypervisor/machine/src/lib.rs", ""),
            ("hypervisor/machine/src/extra.rs", ""),
        ]);
        assert!(
            found.len() == 1 && found[0].contains("no layer"),
            "{found:?}"
        );
    }

    #[test]
    fn a_circle_is_told_with_its_arrows() {
        let found = messages(&[
            ("a/src/lib.rs", "pub mod x; pub mod y; pub mod z;"),
            ("a/src/x.rs", "use crate::y::{self, deep::Thing};"),
            ("a/src/y.rs", "pub mod deep;"),
            ("a/src/y/deep.rs", "use super::super::z::{A, B};"),
            ("a/src/z.rs", "fn f(_: &super::x::Thing) {}"),
        ]);
        assert_eq!(
            found,
            ["modules use each other in a circle: x -> y::deep, y::deep -> z, z -> x"]
        );
    }

    #[test]
    fn a_folder_and_its_head_are_one_room_and_tests_do_not_count() {
        let found = messages(&[
            (
                "a/src/lib.rs",
                "pub mod x; pub mod y; #[cfg(test)] mod tests;",
            ),
            (
                "a/src/x.rs",
                "mod part; use part::P; #[cfg(test)]\nmod tests { use crate::y; }",
            ),
            ("a/src/x/part.rs", "use super::X; use crate::Root;"),
            ("a/src/y.rs", "use crate::x::X; #[cfg(test)] mod tests;"),
            ("a/src/y/tests.rs", "use crate::tests::helper;"),
            ("a/src/tests.rs", "use crate::y::Y;"),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
