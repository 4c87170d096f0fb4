//! The JSON Schema of recipes, for editors: made from the very types that recipes are read into, so that the two cannot
//! differ in their keys.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::Value;

use super::schema::Recipe;
use super::train::defaults_by_kind;

/// The schema, of draft 7, which the YAML servers of all editors read.
pub fn json_schema() -> Value {
    let settings = SchemaSettings::draft07().with_transform(RecursiveTransform(tidy));
    let mut schema = settings.into_generator().into_root_schema_for::<Recipe>();
    schema.insert("title".to_owned(), "Recipe of bam".into());
    schema.to_value()
}

/// Descriptions as running text, without what only rustdoc or a 64-bit machine makes something of.
fn tidy(schema: &mut Schema) {
    schema.remove("format");
    if let Some(Value::String(text)) = schema.get_mut("description") {
        let words: Vec<&str> = text.split_whitespace().collect();
        *text = words.join(" ").replace("[`SlurmSection::", "`slurm.").replace("`]", "`");
    }
}

/// Settings of a kind of training, any of which may be left out. Where all kinds have the same default, it is the schema's;
/// where they differ, the description says how.
pub(super) fn train_settings(schema: &mut Schema) {
    schema.remove("required");
    schema.insert("additionalProperties".to_owned(), false.into());
    let kinds = defaults_by_kind();
    let of_kinds = |key: &str| kinds.each_ref().map(|(kind, settings)| (*kind, &settings[key]));
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (key, property) in properties.iter_mut().filter_map(|(key, p)| Some((key, p.as_object_mut()?))) {
        let defaults = of_kinds(key);
        if defaults.iter().all(|(_, value)| *value == defaults[0].1) {
            property.insert("default".to_owned(), defaults[0].1.clone());
        } else {
            let words: Vec<String> = defaults.iter().map(|(kind, value)| format!("{value} in `{kind}`")).collect();
            let text = property.get("description").and_then(Value::as_str).unwrap_or_default();
            let text = format!("{text} Default: {}.", words.join(", "));
            property.insert("description".to_owned(), text.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All keys of a recipe, as paths in the schema's definitions, with what it says of them.
    fn properties(schema: &Value) -> Vec<(String, Value)> {
        let definitions = schema["definitions"].as_object().unwrap();
        let roots = definitions.iter().map(|(name, d)| (name.as_str(), d)).chain([("Recipe", schema)]);
        let of = |(name, d): (&str, &Value)| {
            let all = d["properties"].as_object().cloned().unwrap_or_default();
            all.into_iter().map(move |(key, p)| (format!("{name}.{key}"), p)).collect::<Vec<_>>()
        };
        roots.flat_map(|(name, d)| of((name, d))).collect()
    }

    #[test]
    fn every_key_is_described_and_every_section_refuses_others() {
        let schema = json_schema();
        let properties = properties(&schema);
        assert!(properties.len() > 80, "{}", properties.len());
        for (path, property) in properties {
            let description = property["description"].as_str().unwrap_or_default();
            assert!(description.len() > 5 && !description.contains("[`"), "{path}: {property}");
        }
        for (name, definition) in schema["definitions"].as_object().unwrap() {
            let is_section = definition.get("properties").is_some();
            assert!(!is_section || definition["additionalProperties"] == false, "{name}");
        }
    }

    #[test]
    fn defaults_are_those_that_recipes_are_completed_with() {
        let schema = json_schema();
        let settings = &schema["definitions"]["TrainSettings"]["properties"];
        assert_eq!(settings["warmup"]["default"], 0.1);
        assert_eq!(settings["rate_scaling"]["default"], "none");
        let epochs = settings["epochs"]["description"].as_str().unwrap();
        assert!(epochs.ends_with("Default: 3 in `single`, 6 in `multi`, 3 in `fine_tune`."), "{epochs}");
        assert_eq!(schema["definitions"]["Sampling"]["properties"]["exponent"]["default"], 0.75);
        assert_eq!(schema["properties"]["mode"]["default"], "single-to-multi");
        assert_eq!(schema["required"], serde_json::json!(["name", "model", "data"]));
    }
}
