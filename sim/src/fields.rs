//! Where two values differ, field by field, in the names of the source.
//!
//! Works on the pretty form of `Debug`, so that every type of ours can be compared without a line of its own. Two values
//! whose forms are equal count as equal here; whoever needs certainty compares the values first.

use std::fmt;

/// One field that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The way to it, for instance `[1].command.Forward[0].start`.
    pub path: String,
    /// What one value has there, in one line.
    pub one: String,
    /// What the other has.
    pub other: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "(all of it)" } else { &self.path };
        write!(f, "{path}: {} | {}", self.one, self.other)
    }
}

/// The fields in which two values differ, at most `max` of them, in the order of the source.
#[must_use]
pub fn differences(one: &dyn fmt::Debug, other: &dyn fmt::Debug, max: usize) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&parse(one), &parse(other), String::new(), max, &mut found);
    found
}

/// A value: `name: Label(children)`, with or without any of the three.
#[derive(PartialEq, Eq, Debug, Default)]
struct Tree {
    name: Option<String>,
    label: String,
    /// Closing bracket; none for a leaf.
    close: Option<char>,
    children: Vec<Tree>,
}

fn parse(value: &dyn fmt::Debug) -> Tree {
    let text = format!("{value:#?}");
    let mut open: Vec<Tree> = vec![Tree::default()];
    for line in text.lines() {
        let line = line.trim();
        if matches!(line, "}" | "}," | ")" | ")," | "]" | "],") {
            let done = open.pop().expect("a bracket closes what one has opened");
            open.last_mut().expect("the root is never closed").children.push(done);
        } else {
            let bracket = line.chars().last().filter(|last| matches!(last, '{' | '(' | '['));
            let body = line.trim_end_matches(['{', '(', '[', ',']).trim_end();
            let body = if bracket.is_some() { body } else { line.strip_suffix(',').unwrap_or(line) };
            let (name, mut label) = split(body, bracket.is_some());
            let mut close = bracket.map(closing);
            if let Some(rest) = label.strip_suffix("[]").filter(|_| bracket.is_none()) {
                // An empty list stands in one line.
                (label, close) = (rest.to_owned(), Some(']'));
            }
            let tree = Tree { name, label, close, children: Vec::new() };
            match bracket {
                Some(_) => open.push(tree),
                None => open.last_mut().expect("the root stays").children.push(tree),
            }
        }
    }
    let mut root = open.pop().expect("the root stays");
    if root.children.len() == 1 { root.children.remove(0) } else { root }
}

const fn closing(open: char) -> char {
    match open {
        '{' => '}',
        '[' => ']',
        _ => ')',
    }
}

/// `name: Label` in its two parts.
fn split(body: &str, is_open: bool) -> (Option<String>, String) {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    match body.split_once(':') {
        Some((name, rest)) if is_name(name) && (is_open || rest.starts_with(' ')) && !rest.starts_with(':') => {
            (Some(name.to_owned()), rest.trim_start().to_owned())
        }
        _ => (None, body.to_owned()),
    }
}

fn compare(one: &Tree, other: &Tree, path: String, max: usize, found: &mut Vec<Difference>) {
    if found.len() >= max {
        return;
    }
    let is_same_kind = one.label == other.label && one.close == other.close && one.name == other.name;
    let are_lists = one.close == Some(']') && is_same_kind;
    if !is_same_kind || one.close.is_none() || (one.children.len() != other.children.len() && !are_lists) {
        if !is_same_kind || one.line() != other.line() {
            found.push(Difference { path, one: one.line(), other: other.line() });
        }
        return;
    }
    let is_wrapper = one.close == Some(')') && one.children.len() == 1;
    let here = if is_wrapper && !one.label.is_empty() && !NOISE.contains(&one.label.as_str()) {
        join(&path, &one.label)
    } else {
        path
    };
    // What both lists begin and end with is left out, so that one item more or less is one difference.
    let (ours, theirs) = (&one.children, &other.children);
    let is_shifted = ours.len() != theirs.len();
    let shared = ours.len().min(theirs.len());
    let head = if is_shifted { ours.iter().zip(theirs).take_while(|(a, b)| a == b).count() } else { 0 };
    let ends = ours.iter().rev().zip(theirs.iter().rev()).take(shared - head);
    let tail = if is_shifted { ends.take_while(|(a, b)| a == b).count() } else { 0 };
    let (ours, theirs) = (&ours[head..ours.len() - tail], &theirs[head..theirs.len() - tail]);
    for (index, (a, b)) in (head..).zip(ours.iter().zip(theirs)) {
        let path = match &a.name {
            Some(name) => join(&here, name),
            None if is_wrapper => here.clone(),
            None => format!("{here}[{index}]"),
        };
        compare(a, b, path, max, found);
    }
    if is_shifted && found.len() < max {
        let from = ours.len().min(theirs.len());
        let rest = |items: &[Tree]| match &items[from..] {
            [] => "nothing".to_owned(),
            [first] => first.line(),
            [first, rest @ ..] => format!("{} and {} more", first.line(), rest.len()),
        };
        let (start, count) = (head + from, ours.len().max(theirs.len()) - from);
        let place = if count == 1 { format!("[{start}]") } else { format!("[{start}..{}]", start + count) };
        found.push(Difference { path: format!("{here}{place}"), one: rest(ours), other: rest(theirs) });
    }
}

/// Wrappers that say nothing about the way.
const NOISE: [&str; 2] = ["Some", "Ok"];

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Tree {
    /// The value in one line, cut where it is long.
    fn line(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        if text.chars().count() > LINE_MAX {
            text = text.chars().take(LINE_MAX).collect::<String>() + "...";
        }
        text
    }

    fn write(&self, text: &mut String) {
        text.push_str(&self.label);
        let Some(close) = self.close else { return };
        match close {
            '}' => text.push_str(" { "),
            ']' => text.push('['),
            _ => text.push('('),
        }
        for (index, child) in self.children.iter().enumerate() {
            if text.len() > 2 * LINE_MAX {
                break;
            }
            if index > 0 {
                text.push_str(", ");
            }
            if let Some(name) = &child.name {
                text.push_str(name);
                text.push_str(": ");
            }
            child.write(text);
        }
        text.push_str(if close == '}' { " }" } else { "" });
        if close != '}' {
            text.push(close);
        }
    }
}

/// Longest form of one value in a difference.
const LINE_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[expect(dead_code, reason = "read through Debug")]
    enum Shape {
        Point,
        Circle(u32),
        Box { corner: (u32, u32), names: Vec<&'static str>, next: Option<std::boxed::Box<Shape>> },
    }

    fn boxed(width: u32, names: &[&'static str], next: Option<Shape>) -> Shape {
        Shape::Box { corner: (1, width), names: names.to_vec(), next: next.map(std::boxed::Box::new) }
    }

    fn check(one: &dyn fmt::Debug, other: &dyn fmt::Debug, expected: &[&str]) {
        let found: Vec<String> = differences(one, other, 10).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_values_do_not_differ() {
        check(&boxed(2, &["a"], Some(Shape::Point)), &boxed(2, &["a"], Some(Shape::Point)), &[]);
        check(&Vec::<u32>::new(), &Vec::<u32>::new(), &[]);
    }

    #[test]
    fn a_field_is_named_by_the_way_to_it() {
        check(&boxed(2, &[], None), &boxed(3, &[], None), &["corner[1]: 2 | 3"]);
        check(&Shape::Circle(2), &Shape::Circle(3), &["Circle: 2 | 3"]);
        let one = boxed(1, &[], Some(boxed(1, &["x"], Some(Shape::Circle(7)))));
        let other = boxed(1, &[], Some(boxed(1, &["y"], Some(Shape::Circle(8)))));
        check(&one, &other, &["next.names[0]: \"x\" | \"y\"", "next.next.Circle: 7 | 8"]);
    }

    #[test]
    fn another_variant_is_one_difference() {
        check(&Shape::Point, &Shape::Circle(1), &["(all of it): Point | Circle(1)"]);
        check(&boxed(1, &[], None), &boxed(1, &[], Some(Shape::Point)), &["next: None | Some(Point)"]);
    }

    #[test]
    fn a_longer_list_says_what_it_has_more() {
        check(&[1, 2], &[1, 5, 3, 4], &["[1]: 2 | 5", "[2..4]: nothing | 3 and 1 more"]);
        check(&Vec::<u32>::new(), &vec![9], &["[0]: nothing | 9"]);
    }

    #[test]
    fn an_item_that_is_missing_in_the_middle_is_one_difference() {
        check(&[1, 2, 3, 4], &[1, 3, 4], &["[1]: 2 | nothing"]);
        check(&[1, 1, 1], &[1, 1], &["[2]: 1 | nothing"]);
    }

    #[test]
    fn text_with_brackets_and_colons_is_a_leaf() {
        let one = boxed(1, &["a: {", "b::c", "),"], None);
        let other = boxed(1, &["a: [", "b::c", "),"], None);
        check(&one, &other, &["names[0]: \"a: {\" | \"a: [\""]);
    }
}
