"""What the programs of scripts/ are made of; nothing here is started by hand."""
