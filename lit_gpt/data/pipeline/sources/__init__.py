"""The kinds of source that a recipe can name, in `data`, `web` and `code`; `KINDS` is the list."""

KINDS = {
    "files": "lit_gpt.data.pipeline.sources.data:TextFiles",
    "html": "lit_gpt.data.pipeline.sources.web:HtmlFiles",
    "warc": "lit_gpt.data.pipeline.sources.web:WarcFiles",
    "hub": "lit_gpt.data.pipeline.sources.data:HubParts",
    "code": "lit_gpt.data.pipeline.sources.code:CodeFolders",
    "stdlib": "lit_gpt.data.pipeline.sources.code:StandardLibrary",
    "class_path": "lit_gpt.data.pipeline.sources.data:UserSource",
}
"""Key that names the kind in the recipe → its class, whose first argument is that key's value."""
