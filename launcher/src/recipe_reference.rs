//! The list of all keys of a recipe as Markdown, from the recipe's JSON Schema: a pure function.

use serde_json::Value;

/// A part of a recipe that has keys of its own, and all places where it may stand.
struct Section<'a> {
    definition: &'a Value,
    places: Vec<String>,
}

/// The whole page.
pub fn markdown(schema: &Value) -> String {
    let mut sections = vec![Section { definition: schema, places: vec![String::new()] }];
    let mut done = 0;
    while done < sections.len() {
        let (definition, places) = (sections[done].definition, sections[done].places.clone());
        for (key, property) in keys(definition) {
            for place in &places {
                let path = if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
                collect(schema, property, path, &mut sections);
            }
        }
        done += 1;
    }
    let mut text = "# Keys of a recipe\n\n\
        `bam schema --markdown` prints this page, from the code. The file beside it, `recipe.schema.json`, tells editors the \
        same: with the line `# yaml-language-server: $schema=…/docs/recipe.schema.json` at the top of a recipe they complete and \
        check keys. `NAME` stands for names of your own choice, `[]` for the entries of a list. Keys in bold must be there.\n"
        .to_owned();
    for Section { definition, places } in &sections {
        text += &section(schema, definition, places);
    }
    text
}

fn section(schema: &Value, definition: &Value, places: &[String]) -> String {
    let heading = if places == [""] {
        "The recipe itself".to_owned()
    } else {
        places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(", ")
    };
    let about = definition["description"].as_str().unwrap_or_default();
    let mut text = format!("\n## {heading}\n\n{about}\n\n| key | type | default | meaning |\n|---|---|---|---|\n");
    for (key, property) in keys(definition) {
        let is_needed = needed(definition, key);
        let key = if is_needed { format!("**`{key}`**") } else { format!("`{key}`") };
        let default = match &property["default"] {
            _ if is_needed => String::new(),
            Value::Null => String::new(),
            value if is_section(schema, property) || *value == serde_json::json!({}) => String::new(),
            Value::String(text) => format!("`{text}`"),
            value => format!("`{value}`"),
        };
        let row = [key, kind(schema, property), default, meaning(schema, property)];
        text += &format!("| {} |\n", row.map(|cell| cell.replace('|', r"\|")).join(" | "));
    }
    text
}

/// The keys of a section, those that must be there first.
fn keys(definition: &Value) -> Vec<(&str, &Value)> {
    let all = definition["properties"].as_object().into_iter().flatten();
    let mut keys: Vec<(&str, &Value)> = all.map(|(key, property)| (key.as_str(), property)).collect();
    keys.sort_by_key(|(key, _)| !needed(definition, key));
    keys
}

fn needed(definition: &Value, key: &str) -> bool {
    definition["required"].as_array().is_some_and(|all| all.iter().any(|k| k == key))
}

/// Finds what a value may be made of.
fn collect<'a>(schema: &'a Value, value: &'a Value, place: String, sections: &mut Vec<Section<'a>>) {
    if let Some(definition) = referred(schema, value) {
        if definition.get("properties").is_none() {
            return collect(schema, definition, place, sections);
        }
        match sections.iter_mut().find(|s| std::ptr::eq(s.definition, definition)) {
            Some(section) if section.places.contains(&place) => {}
            Some(section) => section.places.push(place),
            None => sections.push(Section { definition, places: vec![place] }),
        }
        return;
    }
    for choice in choices(value) {
        collect(schema, choice, place.clone(), sections);
    }
    if value["items"].is_object() {
        collect(schema, &value["items"], format!("{place}[]"), sections);
    }
    if value["additionalProperties"].is_object() {
        collect(schema, &value["additionalProperties"], format!("{place}.NAME"), sections);
    }
}

/// The definition that a value points to.
fn referred<'a>(schema: &'a Value, value: &Value) -> Option<&'a Value> {
    schema.pointer(value["$ref"].as_str()?.strip_prefix('#')?)
}

fn choices(value: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| value[key].as_array()).flatten()
}

/// Whether a value is one section, and nothing else.
fn is_section(schema: &Value, value: &Value) -> bool {
    match referred(schema, value) {
        Some(definition) => definition.get("properties").is_some(),
        None => choices(value).any(|choice| choice["type"] != "null" && is_section(schema, choice)),
    }
}

/// What kind of value it is, in words.
fn kind(schema: &Value, value: &Value) -> String {
    if let Some(definition) = referred(schema, value) {
        return if definition.get("properties").is_some() { "section".to_owned() } else { kind(schema, definition) };
    }
    if value.get("const").is_some() || value["enum"].is_array() {
        return "word".to_owned();
    }
    let names: Vec<&str> = match &value["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => {
            let mut kinds: Vec<String> =
                choices(value).filter(|c| c["type"] != "null").map(|choice| kind(schema, choice)).collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    };
    let name = |name: &str| match name {
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => match value["maxItems"].as_u64() {
            Some(n) => format!("list of {n} {}", plural(&kind(schema, &value["items"]))),
            None => format!("list of {}", plural(&kind(schema, &value["items"]))),
        },
        "object" => match &value["additionalProperties"] {
            of @ Value::Object(_) => format!("names, each with a {}", kind(schema, of)),
            _ => "section".to_owned(),
        },
        other => other.to_owned(),
    };
    names.into_iter().filter(|n| *n != "null").map(name).collect::<Vec<_>>().join(" or ")
}

fn plural(kind: &str) -> String {
    kind.split(" or ").map(|kind| format!("{kind}s")).collect::<Vec<_>>().join(" or ")
}

/// What a key means, and the words that it may be.
fn meaning(schema: &Value, property: &Value) -> String {
    let text = property["description"].as_str().unwrap_or_default().to_owned();
    let words = words(schema, property);
    if words.is_empty() { text } else { format!("{text}<br>{}", words.join("<br>")) }
}

fn words(schema: &Value, value: &Value) -> Vec<String> {
    if let Some(definition) = referred(schema, value) {
        return if definition.get("properties").is_some() { vec![] } else { words(schema, definition) };
    }
    if let Some(Value::String(word)) = value.get("const") {
        return vec![format!("`{word}`: {}", value["description"].as_str().unwrap_or_default())];
    }
    if let Some(all) = value["enum"].as_array() {
        let all: Vec<String> = all.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return vec![all.join(", ")];
    }
    let mut found: Vec<String> = choices(value).flat_map(|choice| words(schema, choice)).collect();
    if value["items"].is_object() {
        found.extend(words(schema, &value["items"]));
    }
    if value["propertyNames"].is_object() {
        found.extend(words(schema, &value["propertyNames"]));
    }
    found
}

#[cfg(test)]
mod tests {
    use bam_cluster::config;

    use super::*;

    #[test]
    fn every_section_stands_where_it_may_be_written() {
        let page = markdown(&config::json_schema());
        for heading in [
            "## The recipe itself",
            "## `train.fine_tune`, `train.multi`, `train.single`",
            "## `data.tasks[]`",
            "## `distill.teachers.NAME`, `distill.teachers.NAME[]`",
            "## `slurm.jobs.NAME`",
        ] {
            assert!(
                page.lines().any(|line| line == heading || line.starts_with(heading)),
                "{heading} is not in {page}"
            );
        }
        for row in ["| **`name`** | text |", "| `seed` | whole number | `1` |", "| `exponent` | number | `0.75` |"] {
            assert!(page.contains(row), "{row} is not in {page}");
        }
        assert!(page.contains("`single-to-multi`: One model of all tasks, taught by one model per task: BAM proper."));
    }
}
