"""The kinds of source that a recipe can name, one file each; `KINDS` is the list."""

KINDS = {
    "files": "lit_gpt.data.pipeline.sources.text:TextFiles",
    "html": "lit_gpt.data.pipeline.sources.html:HtmlFiles",
    "warc": "lit_gpt.data.pipeline.sources.warc:WarcFiles",
    "hub": "lit_gpt.data.pipeline.sources.hub:HubParts",
    "code": "lit_gpt.data.pipeline.sources.code:CodeFolders",
    "stdlib": "lit_gpt.data.pipeline.sources.code:StandardLibrary",
    "class_path": "lit_gpt.data.pipeline.sources.user:UserSource",
}
"""Key that names the kind in the recipe → its class, whose first argument is that key's value."""
