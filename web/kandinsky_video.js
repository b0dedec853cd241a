// Colours for the pack's own sockets and their links, in the classic and in the modern design of nodes; and the titles
// and notes in the pack's templates in the editor's language.

import { app } from "../../scripts/app.js"

export const COLOURS = {
    KV_TEXT_ENCODER: "#9ccc65",
    KV_MOVQ: "#ff8a65",
    KV_VIDEO_MOVQ: "#d57ce0",
    KV_FRAME_LATENT: "#8c9eff",
    KV_KEYFRAME_LATENT: "#40c4ff",
    KV_VIDEO_LATENT: "#1de9b6",
    KV_CURVES: "#ffd54f",
    KV_FRAME_CONDITIONS: "#f48fb1",
}

// The editor empties the colours of types that its palette does not name whenever it loads one; a palette that names
// ours is followed.
function keep(colours, type, colour) {
    let named = ""
    Object.defineProperty(colours, type, {
        configurable: true,
        enumerable: true,
        get: () => named || colour,
        set: (value) => { named = value },
    })
}

// A note of the templates brings its translations. They are dropped then, or they would come back over what a person
// writes there.
function translateNote(node, language) {
    if (node.type != "MarkdownNote" || !node.properties?.translations) return
    const text = node.properties.translations[language]
    if (text) node.widgets_values = [text]
    delete node.properties.translations
}

// A file has one title for a node; where that is one of the templates' own, it is shown translated.
async function translate(workflow) {
    const language = app.extensionManager.setting.get("Comfy.Locale")
    const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])]
    const ours = graphs.some((graph) => graph.nodes?.some((node) => node.type?.startsWith("KandinskyVideo")))
    if (!ours) return
    for (const graph of graphs) graph.nodes.forEach((node) => translateNote(node, language))
    if (language == "en") return
    const titles = (await (await fetch(new URL("titles.json", import.meta.url))).json())[language] ?? {}
    const ids = new Set(graphs.map((graph) => graph.id))
    for (const graph of graphs) {
        for (const item of [...graph.nodes, ...(graph.groups ?? [])])
            if (Object.hasOwn(titles, item.title)) item.title = titles[item.title]
        const shown = [graph, ...graph.nodes.filter((node) => ids.has(node.type))] // what a subgraph shows
        for (const slot of shown.flatMap((item) => [...(item.inputs ?? []), ...(item.outputs ?? [])]))
            if (Object.hasOwn(titles, slot.name)) slot.label ??= titles[slot.name]
    }
}

app.registerExtension({
    name: "KandinskyVideo.Words",
    beforeConfigureGraph: translate,
})

app.registerExtension({
    name: "KandinskyVideo.SocketColours",
    setup() {
        const style = document.createElement("style")
        const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
        style.textContent = `:root { ${variables.join(" ")} }`
        document.head.append(style)
        for (const [type, colour] of Object.entries(COLOURS)) {
            keep(app.canvas.default_connection_color_byType, type, colour)
            keep(app.canvas.constructor.link_type_colors, type, colour)
        }
        app.canvas.setDirty(true, true)
    },
})
