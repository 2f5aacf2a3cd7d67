//! The command line as a whole.

use super::*;
use crate::settings::File;

#[test]
fn the_command_line_contradicts_itself_nowhere() {
    Cli::command().debug_assert();
}

/// Goal: one precedence for all that serving can be told. Method: each flag names a variable, and its key of a file is
/// known, which shows in what is said about a value of a type that no option has.
#[test]
fn every_flag_of_serving_has_a_variable_and_a_key() {
    type Read = fn(&File) -> Option<String>;
    let commands: [(&str, &str, &str, Read); 4] = [
        ("serve", "log_levl", "log_level", |file| serve::read(file).err()),
        ("up", "no_storge", "no_storage", |file| up::read(file).err()),
        ("router", "prot", "port", |file| router::read(file).err()),
        ("bench", "output_fil", "output_file", |file| bench::read(file).err()),
    ];
    let cli = Cli::command();
    for (name, misspelt, meant, read) in commands {
        let command = cli.find_subcommand(name).expect("a command");
        let mut checked = 0;
        for argument in command.get_arguments() {
            let key = argument.get_id().as_str();
            if matches!(key, "help" | "version") {
                continue;
            }
            let variable = argument.get_env().and_then(|name| name.to_str());
            assert!(variable.is_some_and(|name| name.starts_with("PD_")), "{name} --{key}: {variable:?}");
            assert_eq!(argument.get_long().map(|flag| flag.replace('-', "_")).as_deref(), Some(key), "{name}");
            if key == "config" {
                continue;
            }
            let error = read(&File::of("pd.toml", &format!("# a comment\n{key} = {{ no = 1 }}\n")));
            let error = error.unwrap_or_else(|| panic!("{name}: {key} takes anything"));
            assert!(error.starts_with("pd.toml:2:"), "{name} {key}: {error}");
            assert!(!error.contains("unknown field"), "{name} {key}: {error}");
            checked += 1;
        }
        assert!(checked > 10, "{name}: {checked}");
        // The check can fail, and a key that is nearly right is guessed, in whichever part it is.
        let error = read(&File::of("pd.toml", &format!("\n  {misspelt} = 1\n"))).expect("not known");
        assert!(error.starts_with("pd.toml:2:3: "), "{name}: {error}");
        assert!(error.ends_with(&format!("did you mean `{meant}`?")), "{name}: {error}");
    }
}
