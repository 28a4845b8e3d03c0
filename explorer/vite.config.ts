import { defineConfig } from 'vite'

export default defineConfig({
  base: './',
  experimental: {
    // All addresses are relative, since the app may be mounted under any prefix. The page is served beside the folder
    // of its files: <prefix>/graphql and <prefix>/explorer/.
    renderBuiltUrl: (file, { hostType }) => (hostType === 'html' ? `./explorer/${file}` : { relative: true }),
  },
  build: {
    outDir: '../src/headwater/graphql/explorer/static',
    emptyOutDir: true,
    sourcemap: false,
    license: { fileName: 'licenses.md' }, // the licenses of the bundled packages require it
    chunkSizeWarningLimit: 8_000, // kB: the editor is one large chunk, which browsers load once a release
  },
})
