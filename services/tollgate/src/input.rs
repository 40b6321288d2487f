//! What commands read from the standard input: secrets, which histories and process lists show
//! otherwise.

use crate::failure::Result;

/// The next line.
pub(crate) fn line() -> Result<String> {
    Ok(secret()?.trim().to_owned())
}

/// The next line as it is: a password may begin or end with a space.
pub(crate) fn secret() -> Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
