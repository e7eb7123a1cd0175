"""The kinds of source that a recipe can name, implemented in `data`, `web` and `code` and listed in `KINDS`."""

KINDS = {
    "files": "lit_gpt.data.pipeline.sources.data:TextFiles",
    "html": "lit_gpt.data.pipeline.sources.web:HtmlFiles",
    "warc": "lit_gpt.data.pipeline.sources.web:WarcFiles",
    "hub": "lit_gpt.data.pipeline.sources.data:HubParts",
    "code": "lit_gpt.data.pipeline.sources.code:CodeFolders",
    "stdlib": "lit_gpt.data.pipeline.sources.code:StandardLibrary",
    "class_path": "lit_gpt.data.pipeline.sources.data:UserSource",
}
"""Maps the key that names the kind in the recipe to its class, whose first argument is that key's value."""
